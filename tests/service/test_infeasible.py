"""A budget that nothing fits is answered with changes that do; each of them, followed, comes to a plan that is proved."""

from pathlib import Path
from typing import Any

import pytest

from tests.service.running import FINISHED, Running, post_plan

INSISTS = {"optimizer": {"name": "adam"}, "own_loop": True, "min_fidelity": 0.9}


@pytest.mark.slow
def test_every_suggestion_that_is_followed_comes_to_a_plan(service: Running, model_file: Path, sample_file: Path) -> None:
    def finished(request: dict[str, Any]) -> dict[str, Any]:
        plan = post_plan(service, request, model_file.read_bytes(), sample_file.read_bytes()).json()
        return service.until(f"/v1/plans/{plan['id']}", lambda plan: plan["state"] in FINISHED)

    least = finished(INSISTS | {"budget": "1 KiB"})["least_budget_bytes"]
    budget = int(0.8 * least)
    plan = finished(INSISTS | {"budget": budget})
    assert plan["state"] == "infeasible"
    assert sum(tensor["share"] for tensor in plan["binding"]["tensors"]) == pytest.approx(1)
    assert plan["suggestions"], "a loop of one's own and this fidelity need not be insisted on"
    for suggestion in plan["suggestions"]:
        assert suggestion["least_budget_bytes"] <= budget
        followed = finished(INSISTS | {"budget": budget} | suggestion["values"])
        assert followed["state"] == "ready", (suggestion, followed["problem"])
        assert followed["certificate"]["measured_peak_bytes"] <= budget


@pytest.mark.slow
def test_a_fidelity_without_a_budget_gets_the_least_that_has_it(service: Running, model_file: Path, sample_file: Path) -> None:
    request = {"min_fidelity": 1.0, "optimizer": {"momentum": 0.9}, "max_slowdown": 20}
    plan = post_plan(service, request, model_file.read_bytes(), sample_file.read_bytes()).json()
    plan = service.until(f"/v1/plans/{plan['id']}", lambda plan: plan["state"] in FINISHED)
    assert plan["state"] == "ready", plan["problem"]
    assert plan["certificate"]["fidelity"] == pytest.approx(1.0, abs=1e-6)
    assert plan["certificate"]["measured_peak_bytes"] <= plan["budget_bytes"] < plan["certificate"]["plain"]["measured_peak_bytes"]
