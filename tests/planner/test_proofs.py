"""Plans of real networks, proved in processes of their own: peaks and fidelity as predicted."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import memfit
from bench.allocator import step_peak_bytes
from memfit.checkpoint import apply
from planner.capture import capture, without_dropout
from planner.errors import InfeasibleBudget
from planner.patching import recipe_of
from planner.plan import Plan, Proof
from planner.profile import Moment
from planner.profiling import make_profile
from planner.request import Budget, Optimizer, PlanRequest, ProfileSettings
from planner.solver import plain_peak_bytes, solve
from planner.verification import runtime_bytes
from tests.planner.networks import export, graph_of, profile_of
from tests.planner.plans import CHECKPOINT, LOSSY, Case, agrees, gradients, proved, tight_plan

F = torch.nn.functional


def test_the_range_of_fidelity_is_that_of_the_batches(tmp_path: Path) -> None:
    graph, sample, loss = graph_of("convolutional")
    sample["targets"][: len(sample["targets"]) // 2] = 0  # the halves differ
    size = len(sample["targets"]) // 2
    profile = make_profile(graph, sample, ProfileSettings(loss=loss, batch_size=size), lambda fraction, message: None)
    plan = tight_plan(profile)
    assert plan.fidelity_range is not None
    lowest, highest = plan.fidelity_range
    assert lowest + 1e-3 < plan.fidelity < highest - 1e-3
    module = apply(graph.program, recipe_of(profile, plan))
    for model in (module, graph.module):
        without_dropout(model)
    fidelities = []
    for half in (slice(0, size), slice(size, None)):
        part = {name: tensor[half] for name, tensor in sample.items()}
        truth, ours = gradients(graph.module, part, loss), gradients(module, part, loss)
        lost = sum(float((g - ours[name] if name in ours else g).square().sum()) for name, g in truth.items())
        fidelities.append(1 - lost / sum(float(g.square().sum()) for g in truth.values()))
    assert (min(fidelities), max(fidelities)) == pytest.approx((lowest, highest), abs=1e-3)
    proof = proved(graph, sample, profile, plan, tmp_path)
    assert proof.certificate is not None
    assert proof.certificate.fidelity_range == pytest.approx((lowest, highest), abs=1e-3)


@pytest.mark.parametrize(("optimizer", "techniques"), [(Optimizer("sgd", 0.9), LOSSY), (Optimizer("adam"), ("*",))], ids=str)
def test_a_plan_is_proved_in_a_fresh_process(case: Case, optimizer: Optimizer, techniques: tuple[str, ...], tmp_path: Path) -> None:
    graph, sample, profile = case
    plan = tight_plan(profile, optimizer, techniques)
    proof = proved(graph, sample, profile, plan, tmp_path)
    assert proof.measured_peak_bytes == measured_apart(tmp_path / CHECKPOINT, sample, profile.loss)
    assert proof.measured_peak_bytes == pytest.approx(plan.predicted_peak_bytes, rel=0.1)
    if proof.measured_peak_bytes > plan.budget_bytes:
        assert proof.certificate is None and proof.corrections
        return
    assert proof.certificate is not None
    assert agrees(proof.certificate.fidelity, plan, profile)
    assert proof.certificate.plain.measured_peak_bytes == pytest.approx(plain_peak_bytes(profile, optimizer), rel=0.02)
    assert 0 < proof.certificate.runtime_bytes < proof.certificate.process_peak_bytes


def measured_apart(checkpoint: Path, sample: dict[str, Tensor], loss: str) -> int:
    """The peak of the checkpoint's step by the benchmark's measurement, which shares no code with the planner's."""
    module = memfit.load(checkpoint)
    step = memfit.TrainingStep(module, lr=0.0)
    inputs = tuple(tensor for name, tensor in sample.items() if name != "targets")
    static = [*inputs, *([sample["targets"]] if "targets" in sample else [])]
    return step_peak_bytes(lambda: step(inputs, sample.get("targets")), lambda: [*module.parameters(), *module.buffers(), *static])


class Stem(nn.Module):
    """What bounds a network for images: a convolution, its norm, a rectifier and a pooling, all of them wide."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu6(self.norm(self.convolution(image))), 2)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def test_no_second_tensor_stands_beside_the_widest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sample = {"inputs.0": torch.randn(8, 3, 128, 128), "targets": torch.randint(5, (8,))}
    graph = capture(export(Stem().train(), sample))
    profile = profile_of(graph, sample, "cross_entropy")
    plan = solve(profile, PlanRequest(None, techniques=("mask", "index", "recompute"), min_fidelity=1.0))
    wide = 8 * 32 * 128 * 128 * 4
    rows = {f.moment: f for f in plan.timeline}
    for name in ("batch_norm", "relu6"):
        assert rows[Moment("forward", name)].transient_bytes + rows[Moment("forward", name)].saved_bytes < 1.1 * wide
        assert rows[Moment("backward", name)].transient_bytes + rows[Moment("backward", name)].saved_bytes < 1.6 * wide
    assert set(recipe_of(profile, plan).in_place) == {"batch_norm", "relu6"}
    proof = proved(graph, sample, profile, plan, tmp_path)
    assert proof.measured_peak_bytes == pytest.approx(plan.predicted_peak_bytes, rel=0.005)


class Upsampling(nn.Module):
    """What bounds a network that makes maps: transposed convolutions, all of them wide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.up, self.over, self.head = (nn.ConvTranspose2d(*sizes) for sizes in ((32, 24, 2, 2), (24, 16, 4, 2, 1), (16, 5, 1)))

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.mix(F.relu(self.stem(image))))
        result: Tensor = self.head(F.relu(self.over(F.relu(self.up(x)))))
        return result


@pytest.mark.parametrize("techniques", [("mask", "recompute"), ("mask", "basis"), ("*",)], ids=str)
def test_the_peak_of_transposed_convolutions_is_the_predicted(techniques: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    sample = {"inputs.0": torch.randn(8, 3, 32, 32), "targets": torch.randint(5, (8, 64, 64))}
    graph = capture(export(Upsampling().train(), sample))
    profile = profile_of(graph, sample, "cross_entropy")
    plan = tight_plan(profile, techniques=techniques)
    of_transposed = {c.technique for c in plan.activations if set(c.holders) & {"conv_transpose2d", "conv_transpose2d_1"}}
    assert of_transposed != {"keep"} or techniques == ("*",)  # which may send the batch through in parts instead
    proof = proved(graph, sample, profile, plan, tmp_path)
    assert proof.measured_peak_bytes == pytest.approx(plan.predicted_peak_bytes, rel=0.01)


def test_a_budget_of_the_whole_process_is_proved_by_its_peak(tmp_path: Path) -> None:
    graph, sample, loss = graph_of("attending")
    model = tmp_path / "model.pt2"
    torch.export.save(graph.program, model)
    profile = dataclasses.replace(profile_of(graph, sample, loss), runtime_bytes=runtime_bytes(model))
    assert profile.runtime_bytes > 100 << 20  # Python and torch

    def planned(budget_bytes: int) -> tuple[Plan, Proof]:
        plan = solve(profile, PlanRequest(Budget(amount_bytes=budget_bytes), budget_scope="process"))
        return plan, proved(graph, sample, profile, plan, tmp_path)

    roomy = profile.runtime_bytes + (200 << 20)
    plan, proof = planned(roomy)
    assert proof.certificate is not None and plan.budget_bytes + plan.runtime_bytes == roomy
    assert proof.certificate.process_peak_bytes <= roomy
    # The footprint would fit, but not the process.
    plan, proof = planned(profile.runtime_bytes + plan.predicted_peak_bytes)
    assert proof.certificate is None and proof.measured_peak_bytes <= plan.predicted_peak_bytes * 1.1
    assert {correction.moment for correction in proof.corrections} >= {plan.peak.moment}
    with pytest.raises(InfeasibleBudget) as caught:
        solve(profile, PlanRequest(Budget(amount_bytes=1 << 20), budget_scope="process"))
    assert caught.value.least_budget_bytes > profile.runtime_bytes


class Fused(nn.Module):
    """Attention whose queries, keys and values are views of one linear layer's result, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fused, self.out, self.head = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 5)
        self.wide = nn.Sequential(nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 32))  # whose peak comes while the others are held

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (x.unflatten(2, (4, 8)).transpose(1, 2) for x in self.fused(self.norm(tokens)).split(32, dim=2))
        x = tokens + self.out(F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2))
        result: Tensor = self.head((x + self.wide(x)).mean(1))
        return result


@pytest.mark.parametrize("techniques", [("recompute",), ("int8", "int4")], ids=str)
def test_what_attention_reads_of_one_tensor_is_held_until_all_of_it_is_served(techniques: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    sample = {"inputs.0": torch.randn(4, 256, 32), "targets": torch.randint(5, (4,))}
    graph = capture(export(Fused(), sample))
    profile = profile_of(graph, sample, "cross_entropy")
    fidelity = 1.0 if techniques == ("recompute",) else 0.999
    plan = solve(profile, PlanRequest(None, techniques=techniques, min_fidelity=fidelity))
    held = [c for c in plan.activations if any("attention" in holder for holder in c.holders) and c.name == "linear"]
    assert len(held) == 3 and all(c.technique in techniques for c in held)
    proof = proved(graph, sample, profile, plan, tmp_path)
    assert proof.measured_peak_bytes == pytest.approx(plan.predicted_peak_bytes, rel=0.01)
