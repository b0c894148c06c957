"""Bitmaps in plans: offered after rectifiers and nowhere else, one for a relu and what reads it, and measured as planned."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memfit.checkpoint import apply
from memfit.forms import Bitmap
from memfit.recipe import HeldForm
from planner.above_zero import room_above_zero
from planner.capture import TrainingGraph, capture
from planner.patching import recipe_of
from planner.profile import Form, Option, Profile, Step
from planner.profiling import make_profile
from planner.request import PlanRequest, ProfileSettings
from planner.solver import solve
from tests.planner.networks import Rectified, export
from tests.planner.plans import proved

BATCH = 6


def sample_of(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"inputs.0": torch.randn(2 * BATCH, 3, 32, 32).to(dtype), "targets": torch.randint(5, (2 * BATCH,))}


@cache
def case(dtype: torch.dtype = torch.float32) -> tuple[TrainingGraph, Profile]:
    torch.manual_seed(0)
    sample = sample_of(dtype)
    graph = capture(export(Rectified().to(dtype).train(), {name: t[:BATCH] for name, t in sample.items()}))
    settings = ProfileSettings(loss="cross_entropy", batch_size=BATCH)
    return graph, make_profile(graph, sample, settings, lambda fraction, message: None)


def offered(profile: Profile) -> dict[str, tuple[tuple[str, ...], list[Option]]]:
    """For each value that may be held in a bitmap: the operations that share it, and its options."""
    operations = profile.whole.operations
    found = {}
    for activation in profile.whole.activations:
        for form in activation.forms:
            options = [option for option in form.options if option.technique == "bitmap"]
            if options:
                found[form.value] = tuple(operations[activation.holders[h].operation].name for h in form.holders), options
    return found


def test_it_is_offered_after_rectifiers_and_nowhere_else() -> None:
    _, profile = case()
    found = offered(profile)
    assert {value: holders for value, (holders, _) in found.items()} == {
        "relu": ("relu", "conv2d_1", "conv2d_2"),
        **{f"relu_{n}": (f"relu_{n}", f"conv2d_{n + 2}") for n in range(1, 5)},
        "dropout": ("conv2d_7",),  # the relu before the pooling has bits of its own
        "relu6": ("conv2d_8",),  # and so has this, for its gradient passes below 6 alone
    }
    for _, options in found.values():
        assert [option.settings.get("bits") for option in options] == [4, 8, None]
        assert [bool(option.lost_energy) for option in options] == [True, True, False]
        assert options[0].batch_losses and not options[2].batch_losses


@given(seed=st.integers(0, 99), samples=st.integers(1, 9), batches=st.integers(1, 3))
def test_all_parts_of_all_batches_have_room(seed: int, samples: int, batches: int) -> None:
    counts = torch.rand(batches, samples, generator=torch.Generator().manual_seed(seed)).square().mul(10_000).round().double()
    form = Bitmap(*room_above_zero(list(counts / 10_000)))
    sizes = [samples]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    for size in sizes:
        for batch in counts:
            assert all(float(part.sum()) <= form.most_above(len(part), 10_000) for part in batch.split(size))
    assert form.share <= 1


def with_bits(profile: Profile, bits: int | None) -> Profile:
    """The profile with bitmaps of one kind alone."""

    def only(form: Form) -> Form:
        return replace(form, options=tuple(o for o in form.options if o.technique != "bitmap" or o.settings.get("bits") == bits))

    def of(step: Step) -> Step:
        return replace(step, activations=tuple(replace(a, forms=tuple(map(only, a.forms))) for a in step.activations))

    return replace(profile, steps=tuple(map(of, profile.steps)))


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_plan_holds_and_loses_what_it_says(bits: int | None, tmp_path: Path) -> None:
    graph, profile = case()
    asked = PlanRequest(None, techniques=("bitmap", "mask", "index"), min_fidelity=1.0 if bits is None else 0.995)
    plan = solve(with_bits(profile, bits), asked)
    chosen = {choice.value: choice for choice in plan.activations if choice.technique == "bitmap"}
    assert chosen.keys() >= {"relu", "relu_1", "relu_2"} and (plan.fidelity == 1.0) == (bits is None)
    assert not any(choice.value in chosen and choice.technique == "mask" for choice in plan.activations)
    module = apply(graph.program, recipe_of(profile, plan))
    static = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    image = sample_of()["inputs.0"][:BATCH]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = module(image)
    held = sum(size for where, size in kept.items() if where not in static | {image.untyped_storage().data_ptr()})
    internal = sum(operation.internal_bytes for operation in profile.whole.operations if operation.name != "loss")
    assert held == sum(choice.held_bytes for choice in plan.activations if choice.holders != ("loss",)) + internal
    del outputs
    proof = proved(graph, sample_of(), profile, plan, tmp_path)
    assert proof.measured_peak_bytes == pytest.approx(plan.predicted_peak_bytes, rel=0.1)
    if proof.certificate is not None:
        assert proof.certificate.fidelity == pytest.approx(plan.fidelity, abs=1e-3)


def test_a_relu_shares_nothing_but_a_bitmap() -> None:
    graph, profile = case()
    for technique, value in (("int8", "relu"), ("bitmap", "relu6")):
        settings = {"share": 1.0, "spread": 0.0} if technique == "bitmap" else {}
        shared = HeldForm(value, (value, "conv2d_8" if value == "relu6" else "conv2d_1"), technique, settings)
        with pytest.raises(ValueError, match=f"{value} share {technique}, which does not tell where its gradient passes"):
            graph.rewritten(replace(graph.exact_recipe(profile.loss), forms=(shared,)))
