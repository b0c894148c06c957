"""Whole plans of real networks: gradients and bytes as promised, by measurement."""

import dataclasses

import pytest
import torch
from torch import Tensor

from memfit.checkpoint import apply
from memfit.recipe import RECOMPUTE, HeldForm
from planner.patching import recipe_of
from planner.plan import FOLD
from planner.profile import Profile
from planner.sample import batches_of
from planner.solver import solve
from tests.planner.networks import graph_of, profile_of
from tests.planner.plans import LOSSY, NAMES, Case, agrees, gradients, request, tight_plan


@pytest.mark.parametrize("name", NAMES)
def test_lossless_plans_have_the_gradients_of_the_original(name: str) -> None:
    graph, sample, loss = graph_of(name, torch.float64)
    profile = profile_of(graph, sample, loss)
    truth = gradients(graph.module, sample, loss)
    # Nothing, every mask there is, and every way to work an activation out again.
    masks = tuple(f.value for a in profile.whole.activations for f in a.forms if f.options and f.options[0].technique in ("mask", "index"))
    exact = graph.exact_recipe(loss)
    again = recomputing(profile)
    assert len(again) >= 2
    own = tuple(form.value for form in again if form.holders == (form.value,))
    forms = [dataclasses.replace(exact, forms=(form,), masks=masks) for form in again if form.value not in own]
    forms.append(dataclasses.replace(exact, masks=(*masks, *dict.fromkeys(own))))
    for recipe in (exact, dataclasses.replace(exact, masks=masks), *forms):
        ours = gradients(graph.rewritten(recipe), sample, loss)
        assert ours.keys() == truth.keys()
        for parameter, gradient in truth.items():
            assert float((ours[parameter] - gradient).norm() / gradient.norm()) <= 1e-10, parameter
    assert masks or name != "convolutional"


def recomputing(profile: Profile) -> list[HeldForm]:
    """Every option of the profile that works an activation out again."""
    operations = profile.whole.operations
    return [
        HeldForm(
            form.value,
            tuple(operations[activation.holders[h].operation].name for h in form.holders),
            option.technique,
            dict(option.settings),
        )
        for activation in profile.whole.activations
        for form in activation.forms
        for option in form.options
        if option.technique == RECOMPUTE
    ]


def test_the_whole_budget_gives_an_exact_plan(case: Case) -> None:
    graph, sample, profile = case
    plan = solve(profile, request(1.0))
    assert plan.fidelity == 1.0 and plan.bound == 1.0
    truth = gradients(graph.module, sample, profile.loss)
    ours = gradients(apply(graph.program, recipe_of(profile, plan)), sample, profile.loss)
    for parameter, gradient in truth.items():
        torch.testing.assert_close(ours[parameter], gradient, msg=parameter)


@pytest.mark.parametrize("techniques", [LOSSY, (*LOSSY, FOLD)], ids=str)
def test_measured_fidelity_is_the_predicted(case: Case, techniques: tuple[str, ...]) -> None:
    graph, sample, profile = case
    plan = tight_plan(profile, techniques=techniques)
    assert plan.fidelity < 1
    module, plain = apply(graph.program, recipe_of(profile, plan)), graph.module
    for model in (module, plain):
        for child in model.modules():
            if "Dropout" in type(child).__name__:
                child.eval()
    truth, ours = gradients(plain, sample, profile.loss), gradients(module, sample, profile.loss)
    lost = sum(float((g - ours[name] if name in ours else g).double().square().sum()) for name, g in truth.items())
    fidelity = 1 - lost / sum(float(g.double().square().sum()) for g in truth.values())
    plain.train()
    assert agrees(fidelity, plan, profile)


def test_what_is_held_is_what_the_plan_says(case: Case) -> None:
    """Bytes autograd keeps, from its own hooks, against the plan's account of them."""
    graph, sample, profile = case
    plan = tight_plan(profile)
    module = apply(graph.program, recipe_of(profile, plan))
    static = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers(), *sample.values())}
    batch = batches_of(sample, graph.inputs, profile.loss, None)[0]
    static |= {t.untyped_storage().data_ptr() for t in batch.inputs}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in static:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = module(*batch.inputs)
    passing = {parameter.name for parameter in plan.parameters if parameter.trained}
    internal = sum(operation.internal_bytes for operation in profile.whole.operations if operation.name != "loss")
    planned = sum(choice.held_bytes for choice in plan.activations if choice.holders != ("loss",))
    assert passing
    del outputs
    assert sum(kept.values()) <= planned + internal
    assert sum(kept.values()) >= planned * 0.8 or planned < 2000


def test_a_plan_for_another_program_is_refused(case: Case) -> None:
    graph, _, profile = case
    recipe = dataclasses.replace(recipe_of(profile, tight_plan(profile)), graph="0" * 64)
    with pytest.raises(ValueError, match="made for another program"):
        apply(graph.program, recipe)
