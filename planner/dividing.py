"""Where a model is divided: of the very many ways, those few that fill up some amount of memory with as little work as may be.

What a segment takes follows from the steps that run all at once, so ways are compared by sums, and only the best become timelines.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.footprint import timeline
from planner.plan import Schedule
from planner.profile import Moment, Parameter, Profile
from planner.request import Optimizer
from planner.segments import crossings
from planner.timeline import exact_choices, gradient_flow

AMOUNTS = 16  # of memory that ways are looked for in, between the least and what the whole batch takes at once
FINEST = 1 / 256  # of the way between these, the least such amount above the least

Amounts = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pass:
    """The step of so many samples alone, all kept whole, at the places where the model may be divided: its start, the splits, its end.

    Attributes:
        segment_bytes: from one place to a later one, the most bytes at any moment, without what is there of what is before.
        forward_seconds: up to each place, of the second forward of a whole batch.
        seconds: up to each place, of a forward and a backward of a whole batch.
    """

    samples: int
    segment_bytes: Amounts
    forward_seconds: Amounts
    seconds: Amounts


@dataclass
class Dividing:
    """Ways to divide a profile's model, whose parameters `trainable` all train and whose activations are all kept whole."""

    profile: Profile
    optimizer: Optimizer
    early_updates: bool
    trainable: frozenset[str]

    def schedules(self) -> list[tuple[Schedule, float, float]]:
        """Of each number of samples at a time, the fastest in some amounts of memory; with about the peak, and the seconds more than
        those of the whole batch at once.
        """
        whole, found = self._passes[0], dict[Schedule, tuple[float, float]]()
        least = min(float(each.segment_bytes.diagonal(1).max()) for each in self._passes)
        above = float(whole.segment_bytes[0, -1]) - least
        for amount in (least + above * np.geomspace(FINEST, 1.0, AMOUNTS)).tolist():
            for each in self._passes:
                places = self._fastest(each, amount)
                if places:
                    splits = tuple(self.profile.splits[place - 1] for place in places)
                    found[Schedule(whole.samples, self.early_updates, splits, each.samples)] = self._cost(each, places)
        return [(schedule, *cost) for schedule, cost in found.items()]

    @property
    def seconds(self) -> float:
        """Of the whole batch at once."""
        return float(self._passes[0].seconds[-1])

    def _cost(self, part: Pass, places: list[int]) -> tuple[float, float]:
        whole, last = self._passes[0], len(self._boundaries) - 1
        held = np.cumsum(self._boundaries[places])
        peaks = [part.segment_bytes[a, b] + there for a, b, there in zip([0, *places], places, held, strict=False)]
        return max(float(held[-1] + whole.segment_bytes[places[-1], last]), *map(float, peaks)), float(self._more_seconds(part)[places[-1]])

    def _more_seconds(self, part: Pass) -> Amounts:
        """Than those of the whole batch at once, at each last place."""
        return part.seconds + part.forward_seconds - self._passes[0].seconds

    def _fastest(self, part: Pass, amount: float) -> list[int]:
        """The places of the least work at which segments fit in this amount; [] where none do.

        Work depends on the last place alone, and what is held at places on those before: so each is reached with as little there as may be.
        """
        whole, last = self._passes[0], len(self._boundaries) - 1
        held, before = np.full(last, np.inf), [0] * last
        held[self._first] = self._boundaries[self._first]
        for place in range(self._first + 1, last):
            there = held[:place] + self._boundaries[place]
            there[there + part.segment_bytes[:place, place] > amount] = np.inf
            before[place] = int(np.argmin(there))
            held[place] = there[before[place]]
        fits = [place for place in range(max(1, self._first), last) if held[place] + whole.segment_bytes[place, last] <= amount]
        if not fits:
            return []
        seconds = self._more_seconds(part)
        places = [min(fits, key=lambda place: seconds[place])]
        while places[0] > max(1, self._first) and before[places[0]] > 0:
            places.insert(0, before[places[0]])
        return places

    @cached_property
    def _cuts(self) -> list[int]:
        """The last operation before each place."""
        return [-1, *(i for i, o in enumerate(self.profile.whole.operations) if o.name in self.profile.splits), len(self._flow) - 1]

    @cached_property
    def _flow(self) -> list[bool]:
        return gradient_flow(self.profile.whole, self.trainable)

    @cached_property
    def _first(self) -> int:
        """The last place that no gradient passes: nothing before it runs again."""
        return max(place for place, cut in enumerate(self._cuts[:-1]) if not any(self._flow[: cut + 1]))

    @cached_property
    def _boundaries(self) -> Amounts:
        """Bytes of what is read from before each place by what is after it."""
        return np.array([each.boundary_bytes for each in crossings(self.profile.whole, tuple(self._cuts))], dtype=np.float64)

    @cached_property
    def _passes(self) -> list[Pass]:
        return [self._pass(self.profile.with_batch_of(step.batch_size)) for step in self.profile.steps]

    def _pass(self, alone: Profile) -> Pass:
        step = alone.whole
        made = timeline(alone, self.optimizer, Schedule(step.batch_size, self.early_updates))
        everything = exact_choices(step, self.trainable)
        of_kinds = made.bytes(everything)
        total = of_kinds.sum(0) + self.profile.static_bytes - alone.static_bytes
        forward, backward = ([made.row[Moment(phase, o.name)] for o in step.operations] for phase in ("forward", "backward"))
        updated = [backward[i - 1] if i else len(total) for i in range(len(backward))]  # parameters of an operation, after its backward
        highest = np.array([max(total[forward[i]], total[backward[i] : updated[i]].max()) for i in range(len(forward))])
        before = np.array([0, *(of_kinds[1, forward[cut + 1]] for cut in self._cuts[1:-1])])  # saved by earlier operations
        count = len(self._cuts)
        segment = np.full((count, count), np.inf)
        for a in range(count - 1):
            most = np.maximum.accumulate(highest[self._cuts[a] + 1 :])
            segment[a, a + 1 :] = most[np.array(self._cuts[a + 1 :]) - self._cuts[a] - 1] - before[a]
        if step.batch_size < self.profile.whole.batch_size:  # a gradient is there for all slices
            gradients = np.array([sum(p.bytes for p in self._trained_up_to(made.readers, cut)) for cut in self._cuts], dtype=np.float64)
            segment += gradients[None, :] - gradients[:, None]
        spent = [o.forward_seconds + o.backward_seconds * passes for o, passes in zip(step.operations, self._flow, strict=True)]
        again = [o.forward_seconds * (i > self._cuts[self._first]) for i, o in enumerate(step.operations)]
        forward_seconds, seconds = (np.append(0.0, np.cumsum(each))[np.array(self._cuts) + 1] for each in (again, spent))
        return Pass(step.batch_size, segment, forward_seconds, seconds)

    def _trained_up_to(self, readers: dict[str, list[int]], cut: int) -> Iterator[Parameter]:
        return (p for p in self.profile.parameters if p.name in self.trainable and p.name in readers and min(readers[p.name]) <= cut)
