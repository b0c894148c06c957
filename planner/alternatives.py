"""What simpler ways would give in a plan's budget, so that nobody compresses who need not.

Each is the best of its own kind, from the same profile and by the same account as the plan, under the names people know them by.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from planner.menu import lossless_menu, lossy_techniques
from planner.plan import Alternative, Plan
from planner.profile import Profile
from planner.request import PlanRequest
from planner.schedules import Programs
from planner.search import Solution, limits_of, search
from planner.trainable import last_layers, layers, weights

EPSILON = 0.8  # share of energy that the papers' experiments keep of each mode
SEARCH_SECONDS = 2.0  # for the best without loss


def alternatives(profile: Profile, request: PlanRequest, plan: Plan) -> tuple[Alternative, ...]:
    """The best plan within the budget without loss; with a smaller batch alone; of the last layers alone, held whole; and of the last
    layers with their inputs in HOSVD at one ε, as in the papers. Where nothing of a kind fits, that is said.
    """
    plain = replace(request, own_loop=True, max_slowdown=None, min_fidelity=None)  # one schedule: the batch at once
    programs = Programs(profile, plain, weights(profile, plain))
    papers = replace(programs, request=replace(plain, techniques=("hosvd",)))  # or its options would give way to better ones
    return (
        _lossless(profile, request, plan),
        _smaller_batch(programs, plan.budget_bytes),
        _best(programs, plan.budget_bytes, "last_layers", _last_layers),
        _best(papers, plan.budget_bytes, "one_epsilon", _one_epsilon),
    )


def _lossless(profile: Profile, request: PlanRequest, plan: Plan) -> Alternative:
    if plan.score == 1.0 and not lossy_techniques(profile) & {choice.technique for choice in plan.activations}:
        return Alternative("lossless", True, plan.fidelity, plan.predicted_peak_bytes, plan.slowdown, {"the plan": True})
    programs = Programs(lossless_menu(profile), replace(request, min_fidelity=None), weights(profile, request))
    solution = search(programs, limits_of(programs, plan.budget_bytes), SEARCH_SECONDS)
    return _alternative("lossless", programs, solution, {})


def _smaller_batch(whole: Programs, budget_bytes: int) -> Alternative:
    """The plain step of the largest batch that fits, in the time that the whole batch takes with it."""
    for step in whole.profile.steps:
        programs = replace(whole, profile=whole.profile.with_batch_of(step.batch_size))
        (program,) = programs
        if program.peak_of_everything <= budget_bytes:
            made = _alternative("smaller_batch", programs, Solution(program, program.everything, 0.0), {"batch_size": step.batch_size})
            return replace(made, slowdown=program.seconds_of_everything / whole.plain_seconds)
    return Alternative("smaller_batch", False)


def _best(programs: Programs, budget_bytes: int, name: str, candidates: Callable[[Programs], Iterator[Solution]]) -> Alternative:
    """The candidate within the budget that loses least."""
    fitting = [each for each in candidates(programs) if each.program.timeline.peak_bytes(each.choices) <= budget_bytes]
    best = min(fitting, key=lambda solution: solution.loss, default=None)
    trained = {"trained": sorted(best.choices.trained)} if best is not None else {}
    return _alternative(name, programs, best, trained | ({"epsilon": EPSILON} if name == "one_epsilon" else {}))


def _last_layers(programs: Programs) -> Iterator[Solution]:
    """Every number of last layers trained, and all kept whole."""
    yield from _of_last_layers(programs, [])


def _one_epsilon(programs: Programs) -> Iterator[Solution]:
    """Every number of last layers trained, with their inputs in HOSVD at the threshold nearest to `EPSILON`, and the rest whole."""
    (program,) = programs
    nearest: dict[tuple[int, int], tuple[float, int]] = {}
    for column, (a, f, _) in enumerate(program.rows.at.chosen, start=program.rows.at.options):
        threshold = program.rows.options[column].settings.get("threshold")
        if isinstance(threshold, float) and abs(threshold - EPSILON) < 0.1:
            nearest[a, f] = min(nearest.get((a, f), (np.inf, column)), (abs(threshold - EPSILON), column))
    yield from _of_last_layers(programs, [column for _, column in nearest.values()])


def _of_last_layers(programs: Programs, options: list[int]) -> Iterator[Solution]:
    (program,) = programs
    for last in range(1, len(layers(programs.profile)) + 1):
        names = last_layers(programs.profile, last) & programs.weight.keys()
        if names:
            yield Solution(program, program.choices_with(names, options), 0.0)


def _alternative(name: str, programs: Programs, solution: Solution | None, facts: dict[str, object]) -> Alternative:
    if solution is None:
        return Alternative(name, False)
    program, choices = solution.program, solution.choices
    return Alternative(
        name, True, program.fidelity(choices), program.timeline.peak_bytes(choices), solution.seconds / programs.plain_seconds, facts
    )
