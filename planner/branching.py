"""The least loss of several schedules, by branch and bound over all of them at once.

A node is a schedule with some of its parameters decided, and its relaxation a few steps of the simplex method from the one before: it takes
milliseconds. Which parameters train moves the bound; which options stand then makes little difference to it, so where no parameter is
left in parts HiGHS chooses options for the rest. Best first.

Source: Land and Doig 1960.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from time import perf_counter

import numpy as np

from planner.highs import Values
from planner.integer_program import LOSS_GAP, WHOLE, IntegerProgram
from planner.lazy_program import Limits
from planner.timeline import Choices

QUICK = 0.6  # of the seconds left, for which HiGHS is given a schedule as it is, while others wait: its cuts prove most at once
QUICK_ALONE = 0.9  # the same while none does
ROUGH = 1e-2  # of the objective: what a quick choice may lose more than the relaxation
SHORTEST_SEARCH = 0.2  # seconds that options are given at least
Decided = dict[int, float]


@dataclass(frozen=True, slots=True, order=True)
class Node:
    """A schedule, and values of some of its variables; no choices with these lose less than the bound."""

    bound: float
    number: int
    program: int = field(compare=False)
    decided: Decided = field(compare=False)


@dataclass
class Branching:
    """The search for the least loss within limits.

    Attributes:
        best: the program and the choices that lose least of those found, and what they lose.
        closed: of each program, the lowest bound of nodes that are done with.
    """

    programs: Sequence[IntegerProgram]
    limits: Limits
    best: tuple[float, IntegerProgram, Choices] | None = None

    def __post_init__(self) -> None:
        self._open = [Node(program.known_bound(self.limits), n, n, {}) for n, program in enumerate(self.programs)]
        heapify(self._open)
        self._made = len(self._open)
        self._known: IntegerProgram | None = None  # the one looked at last, which knows the moments that bind
        self._closed = [np.inf] * len(self.programs)

    def run(self, seconds: float, longest: float) -> None:
        """Until the best is proved, or for `seconds`; where nothing is found by then, until something is, or for `longest`."""
        started = perf_counter()

        def left() -> float:
            return (seconds if self.best is not None else longest) - (perf_counter() - started)

        rounded: list[Node] = []  # every schedule before one is searched: less is worth a search, the better the best is
        while self._open and self._open[0].bound < self._wanted and left() > 0:
            self._round(heappop(self._open), rounded, seconds > 0)
        for node in rounded:
            heappush(self._open, node)
        while self._open and self._open[0].bound < self._wanted and left() > 0:
            self._look(heappop(self._open), left, seconds > 0)
        self._remember()

    @property
    def bound(self) -> float:
        """No choices lose less."""
        return min((self._bound_of(n) for n in range(len(self.programs))), default=np.inf)

    @property
    def _wanted(self) -> float:
        """Of which bound a node still may hold something better."""
        return self.best[0] - LOSS_GAP if self.best is not None else np.inf

    def _round(self, node: Node, rounded: list[Node], thorough: bool) -> None:
        """Look for choices close to the relaxation of a schedule, once it has the lowest bound.

        Args:
            rounded: nodes that this is done with.
            thorough: whether choices are better good than quick.
        """
        program = self.programs[node.program]
        if self._known is not None:
            program.lazy.expect(self._known.lazy)
        self._known = program
        solved = program.relaxed(self.limits, {})
        if solved is None:
            return
        node = replace(node, bound=max(node.bound, solved.costs))
        if self._open and node.bound > self._open[0].bound:
            return heappush(self._open, node)  # others come first
        rounded.append(node)
        if node.bound < self._wanted and not thorough:
            self._found(program, program.rounded(solved.values, self.limits, {}, trained=True))
        if node.bound < self._wanted - (0.0 if thorough else ROUGH):
            self._found(program, program.rounded(solved.values, self.limits, {}, trained=False, wanted=self._wanted))

    def _look(self, node: Node, left: Callable[[], float], thorough: bool) -> None:
        """Look at a node, and part it where it may hold something better.

        Args:
            left: seconds, by what is found at that time.
            thorough: whether options are searched for where the quick choice leaves a gap.
        """
        program, whole = self.programs[node.program], not node.decided
        solved = program.relaxed(self.limits, node.decided)
        if solved is None:
            return
        bound = max(node.bound, solved.costs)
        if bound < self._wanted:
            column = _undecided(program, solved.values)
            if not whole and self.best is None:
                self._found(program, program.rounded(solved.values, self.limits, node.decided, trained=True))
            if bound < self._wanted and (thorough or self.best is None) and (whole or column is None):
                seconds = max(left(), SHORTEST_SEARCH) * self._share(node, column)
                choices, proved = program.least_loss(self.limits, node.decided, seconds, self._wanted)
                self._found(program, choices)
                bound = max(bound, proved)
            if column is not None and bound < self._wanted:
                for value in (0.0, 1.0):
                    heappush(self._open, self._part(node, bound, column, value))
                return
        self._closed[node.program] = min(self._closed[node.program], bound)

    def _share(self, node: Node, column: int | None) -> float:
        """Of the seconds left, what HiGHS is given for a node with this parameter undecided."""
        if column is None:
            return 1.0
        others = any(other.program != node.program and other.bound < self._wanted for other in self._open)
        return QUICK if others else QUICK_ALONE

    def _found(self, program: IntegerProgram, choices: Choices | None) -> None:
        if choices is not None and (self.best is None or program.loss(choices) < self.best[0]):
            self.best = program.loss(choices), program, choices

    def _part(self, node: Node, bound: float, column: int, value: float) -> Node:
        self._made += 1
        return Node(bound, self._made, node.program, node.decided | {column: value})

    def _bound_of(self, program: int) -> float:
        return min([self._closed[program], *(node.bound for node in self._open if node.program == program)])

    def _remember(self) -> None:
        for n, program in enumerate(self.programs):
            program.remember_bound(self.limits, self._bound_of(n))


def _undecided(program: IntegerProgram, values: Values) -> int | None:
    """The parameter that the relaxation decides least, by its weight."""
    parts = np.minimum(values, 1.0 - values)[: program.rows.at.gradients] * program.rows.weights
    column = int(np.argmax(parts))
    return column if parts[column] > WHOLE * program.rows.weights[column] else None
