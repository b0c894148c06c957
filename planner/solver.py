"""The choice: profile + budget -> plan.

The plan loses the least of the objective, at a small price for time, with the footprint inside the budget at every moment.
"""

from dataclasses import replace
from time import perf_counter

from planner.chosen import plan_of
from planner.infeasibility import infeasible
from planner.plan import Correction, Plan
from planner.profile import Profile
from planner.request import Optimizer, PlanRequest
from planner.schedules import Programs
from planner.search import least_peak, limits_of, search
from planner.trainable import weights

SEARCH_SECONDS = 4.5  # for a plan that is measured next, which takes longer


def solve(profile: Profile, request: PlanRequest, corrections: tuple[Correction, ...] = (), search_seconds: float = SEARCH_SECONDS) -> Plan:
    """`best_plan` of a profile, once. `corrections`: what measured steps took beyond earlier predictions.

    Raises:
        NothingTrainable, BadBudget, InfeasibleBudget: as `best_plan`.
    """
    return best_plan(programs_for(profile, request, corrections), search_seconds)


def programs_for(profile: Profile, request: PlanRequest, corrections: tuple[Correction, ...] = ()) -> Programs:
    """The integer programs of a profile, for requests that differ from this one in their limits alone.

    Raises:
        NothingTrainable: no parameter with a gradient may train.
    """
    return Programs(profile, request, weights(profile, request), corrections)


def best_plan(programs: Programs, search_seconds: float = SEARCH_SECONDS) -> Plan:
    """The plan that loses least within the budget, or, asked for no budget, the one with the least peak of the wanted fidelity.

    Args:
        search_seconds: after which the best plan found stands, with the bound that was proved by then. 0: the first one found, for
            an answer that someone waits for.

    Raises:
        BadBudget: the headroom leaves nothing of the budget.
        InfeasibleBudget: not even the smallest plan fits.
    """
    started = perf_counter()
    profile, request = programs.profile, programs.request
    runtime_bytes = profile.runtime_bytes if request.budget_scope == "process" else 0
    plain_bytes = plain_peak_bytes(profile, request.optimizer)
    budget_bytes = request.budget_bytes(plain_bytes + runtime_bytes)
    if budget_bytes is None:
        smallest = least_peak(programs, limits_of(programs, plain_bytes))
        assert smallest is not None, "the plain step loses nothing"
        budget_bytes = smallest[1]
    else:
        budget_bytes -= runtime_bytes
    solution = search(programs, limits_of(programs, budget_bytes), search_seconds)
    if solution is None:
        raise infeasible(programs, budget_bytes, runtime_bytes)
    asked_bytes = request.budget.in_bytes(plain_bytes + runtime_bytes) if request.budget is not None else budget_bytes + runtime_bytes
    headroom_bytes = asked_bytes - runtime_bytes - budget_bytes
    plan = plan_of(solution, profile, request, budget_bytes, headroom_bytes, programs.plain_seconds, perf_counter() - started)
    return replace(plan, budget_scope=request.budget_scope, runtime_bytes=runtime_bytes)


def plain_peak_bytes(profile: Profile, optimizer: Optimizer) -> int:
    """Peak of the plain step with this optimizer: measured without state, which it holds at every moment."""
    parameters = sum(parameter.bytes for parameter in profile.parameters)
    update = profile.static_bytes + parameters  # all gradients, at the end
    if optimizer.states == 2:
        update += 2 * max((parameter.bytes for parameter in profile.parameters), default=0)
    return max(profile.plain_peak_bytes, update) + optimizer.states * parameters
