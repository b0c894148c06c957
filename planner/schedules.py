"""The schedules a request allows, and the integer program of each."""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

from planner.dividing import Dividing
from planner.footprint import timeline, without_rows
from planner.integer_program import IntegerProgram
from planner.menu import allowed_menu
from planner.plan import EARLY_UPDATE, MICRO_BATCH, SLICES, Correction, Schedule
from planner.profile import Profile
from planner.request import PlanRequest
from planner.timeline import gradient_flow

SMALLEST = 3  # schedules that divide the model, of the lowest peaks
NOTICEABLE = 0.03  # share of the step's time: less than that is no reason to leave an earlier schedule


@dataclass
class Programs:
    """Integer programs of the schedules that a request allows, each made when it is first looked at. The request's limits are not part
    of them.

    Attributes:
        weight: of each trainable parameter in the objective; they sum to 1.
    """

    profile: Profile
    request: PlanRequest
    weight: dict[str, float]
    corrections: tuple[Correction, ...] = ()

    def within(self, request: PlanRequest) -> "Programs":
        """The same programs, with what was made of them, for a request that differs in its limits alone."""
        assert request.without_limits == self.request.without_limits
        same = copy(self)
        same.request = request
        return same

    @cached_property
    def plain_seconds(self) -> float:
        """Of the plain step, its update left out: everything kept whole, all trainable parameters trained."""
        passes = gradient_flow(self.profile.whole, frozenset(self.weight))
        operations = zip(self.profile.whole.operations, passes, strict=True)
        return max(1e-6, sum(operation.forward_seconds + operation.backward_seconds * passed for operation, passed in operations))

    @cached_property
    def undivided(self) -> list[IntegerProgram]:
        """Those that run the whole model at once, the plainest first."""
        return [self._program(schedule) for schedule in undivided(self.profile, self.request)]

    @cached_property
    def divided(self) -> list[IntegerProgram]:
        return [self._program(schedule) for schedule in divided(self.profile, self.request, frozenset(self.weight))]

    @cached_property
    def _menu(self) -> Profile:
        return allowed_menu(without_rows(self.profile) if self.request.own_loop else self.profile, self.request.may_use)

    def __iter__(self) -> Iterator[IntegerProgram]:
        yield from self.undivided
        yield from self.divided

    def _program(self, schedule: Schedule) -> IntegerProgram:
        made = timeline(self._menu, self.request.optimizer, schedule, self.corrections)
        return IntegerProgram(made, self.weight, self.plain_seconds)


def undivided(profile: Profile, request: PlanRequest) -> list[Schedule]:
    """The schedules a request allows that run the whole model at once, the plainest first."""
    whole = profile.whole.batch_size
    allowed = [Schedule(whole)]
    if request.own_loop:
        return allowed
    if request.may_use(EARLY_UPDATE):
        allowed.append(Schedule(whole, early_updates=True))
    if request.may_use(MICRO_BATCH):
        allowed += [Schedule(step.batch_size) for step in profile.steps[1:]]
    return allowed


def divided(profile: Profile, request: PlanRequest, trainable: frozenset[str]) -> list[Schedule]:
    """The schedules a request allows that divide the model: the `SMALLEST`, and those that no other beats in peak and time, while
    all trains and is kept whole.
    """
    if request.own_loop or not profile.splits or not request.may_use(SLICES):
        return []
    dividing = Dividing(without_options(profile), request.optimizer, request.may_use(EARLY_UPDATE), trainable)
    at_once, kept, fastest = dividing.seconds, [], float("inf")
    for rank, (schedule, _, more) in enumerate(sorted(dividing.schedules(), key=lambda way: way[1:])):
        if rank < SMALLEST or at_once + more < (1 - NOTICEABLE) * fastest:
            kept.append(schedule)
            fastest = min(fastest, at_once + more)
    return kept


def without_options(profile: Profile) -> Profile:
    """The profile of a model whose activations are kept whole or not at all."""
    activations = (tuple(replace(each, forms=()) for each in step.activations) for step in profile.steps)
    return replace(profile, steps=tuple(replace(step, activations=a) for step, a in zip(profile.steps, activations, strict=True)))
