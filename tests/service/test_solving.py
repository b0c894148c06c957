"""Jobs solve in processes of their own: the same plans and refusals as here, and ended when nobody wants them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import pytest

from planner.alternatives import alternatives
from planner.errors import InfeasibleBudget
from planner.profile import Profile
from planner.request import Budget, PlanRequest
from planner.solver import solve
from service.limits import limits_for
from service.sandbox import Confinement, find_sandbox
from service.stage_process import Cancellation, Cancelled, Stages
from tests.planner import networks
from tests.service.running import stage_children, until

REQUEST = PlanRequest(Budget(share=0.6), own_loop=True)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return networks.profile_of(*networks.graph_of("convolutional"))


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    (tmp_path / "work").mkdir()
    confinement = Confinement(limits_for(None, 600, 2**30), find_sandbox("auto"))
    return Stages(tmp_path / "work", tmp_path / "log", Cancellation(), confinement)


def test_a_plan_is_that_which_is_solved_here(stages: Stages, profile: Profile) -> None:
    plan, here = stages.solve(profile, REQUEST, ()), solve(profile, REQUEST)
    assert (plan.budget_bytes, plan.predicted_peak_bytes) == (here.budget_bytes, here.predicted_peak_bytes)
    assert (plan.activations, plan.parameters, plan.schedule) == (here.activations, here.parameters, here.schedule)
    assert stages.compare(profile, REQUEST, plan).alternatives == alternatives(profile, REQUEST, plan)


def test_an_infeasible_budget_is_told_with_all_its_facts(stages: Stages, profile: Profile) -> None:
    small = PlanRequest(Budget(amount_bytes=1000))
    with pytest.raises(InfeasibleBudget) as here:
        solve(profile, small)
    with pytest.raises(InfeasibleBudget) as there:
        stages.solve(profile, small, ())
    assert (str(there.value), there.value.facts) == (str(here.value), here.value.facts)


def test_it_ends_when_nobody_wants_it(stages: Stages, profile: Profile) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stages.solve, profile, REQUEST, ())
        until(lambda: len(stage_children(stages.folder)) == 1)
        begin = monotonic()
        stages.cancellation.cancel()
        with pytest.raises(Cancelled):
            waiting.result(10)
    assert monotonic() - begin < 2
    assert stage_children(stages.folder) == []
