"""Whole plans of real networks: gradients, bytes and peaks as promised, by measurement."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import memfit
from bench.allocator import step_peak_bytes
from memfit.checkpoint import apply
from memfit.losses import loss_of
from memfit.recipe import RECOMPUTE, HeldForm
from planner.capture import TrainingGraph, capture, without_dropout
from planner.errors import BadSample, InfeasibleBudget
from planner.patching import recipe_of
from planner.plan import Plan, Proof
from planner.profile import Moment, Profile
from planner.profiling import make_profile
from planner.record import record
from planner.request import Budget, Optimizer, PlanRequest, ProfileSettings
from planner.sample import batches_of
from planner.solver import plain_peak_bytes, solve
from planner.verification import prove, runtime_bytes
from tests.planner.networks import export, graph_of, profile_of

F = torch.nn.functional

NAMES = ("convolutional", "attending", "gated", "unet")
WITHOUT_STATE = Optimizer()
Case = tuple[TrainingGraph, dict[str, Tensor], Profile]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    graph, sample, loss = graph_of(request.param)
    return graph, sample, profile_of(graph, sample, loss)


def request(share: float, **rest: object) -> PlanRequest:
    return PlanRequest(Budget(share=share), **rest)  # type: ignore[arg-type]


def gradients(model: nn.Module, sample: dict[str, Tensor], loss: str) -> dict[str, Tensor]:
    torch.manual_seed(3)
    targets = sample.get("targets")
    inputs = [tensor for name, tensor in sample.items() if name != "targets"]
    model.zero_grad()
    loss_of(loss, model(*inputs), targets).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


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


LOSSY = ("mask", "svd", "hosvd")


def tight_plan(profile: Profile, optimizer: Optimizer = WITHOUT_STATE, techniques: tuple[str, ...] = LOSSY) -> Plan:
    """A plan with little more room than the least, but in which much still trains."""
    try:
        solve(profile, PlanRequest(Budget(amount_bytes=profile.static_bytes // 2), optimizer, techniques=techniques))
    except InfeasibleBudget as error:
        least = error.least_budget_bytes
    room = (plain_peak_bytes(profile, optimizer) - least) // (2 if techniques == LOSSY else 8)
    return solve(profile, PlanRequest(Budget(amount_bytes=least + room), optimizer, techniques=techniques))


def agrees(fidelity: float, plan: Plan, profile: Profile) -> bool:
    """Whether measured fidelity is the predicted; with tied weights, whose loss is an upper limit, at least that."""
    tied = any(sum(p in operation.parameters for operation in profile.whole.operations) > 1 for p in ("head.weight", "tied.weight"))
    return fidelity >= plan.fidelity - 1e-3 and (tied or fidelity <= plan.fidelity + 1e-3)


def test_measured_fidelity_is_the_predicted(case: Case) -> None:
    graph, sample, profile = case
    plan = tight_plan(profile)
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
    model, checkpoint, file = tmp_path / "model.pt2", tmp_path / "checkpoint.pt2", tmp_path / "sample.safetensors"
    torch.export.save(graph.program, model)
    save_file(sample, file)
    memfit.save(checkpoint, torch.export.load(model), recipe_of(profile, plan))
    proof = prove(model, checkpoint, file, profile, plan, lambda fraction, message: None)
    assert proof.certificate is not None
    assert proof.certificate.fidelity_range == pytest.approx((lowest, highest), abs=1e-3)


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


@pytest.mark.parametrize(("optimizer", "techniques"), [(Optimizer("sgd", 0.9), LOSSY), (Optimizer("adam"), ("*",))], ids=str)
def test_a_plan_is_proved_in_a_fresh_process(case: Case, optimizer: Optimizer, techniques: tuple[str, ...], tmp_path: Path) -> None:
    graph, sample, profile = case
    plan = tight_plan(profile, optimizer, techniques)
    model, checkpoint, file = tmp_path / "model.pt2", tmp_path / "checkpoint.pt2", tmp_path / "sample.safetensors"
    torch.export.save(graph.program, model)
    save_file(sample, file)
    memfit.save(checkpoint, torch.export.load(model), recipe_of(profile, plan))
    proof = prove(model, checkpoint, file, profile, plan, lambda fraction, message: None)
    assert proof.measured_peak_bytes == measured_apart(checkpoint, sample, profile.loss)
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
    recipe = recipe_of(profile, plan)
    assert set(recipe.in_place) == {"batch_norm", "relu6"}
    model, checkpoint, file = tmp_path / "model.pt2", tmp_path / "checkpoint.pt2", tmp_path / "sample.safetensors"
    torch.export.save(graph.program, model)
    save_file(sample, file)
    memfit.save(checkpoint, torch.export.load(model), recipe)
    proof = prove(model, checkpoint, file, profile, plan, lambda fraction, message: None)
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
    model, checkpoint, file = tmp_path / "model.pt2", tmp_path / "checkpoint.pt2", tmp_path / "sample.safetensors"
    torch.export.save(graph.program, model)
    save_file(sample, file)
    memfit.save(checkpoint, torch.export.load(model), recipe_of(profile, plan))
    proof = prove(model, checkpoint, file, profile, plan, lambda fraction, message: None)
    assert proof.measured_peak_bytes == pytest.approx(plan.predicted_peak_bytes, rel=0.01)


def test_a_budget_of_the_whole_process_is_proved_by_its_peak(tmp_path: Path) -> None:
    graph, sample, loss = graph_of("attending")
    model, checkpoint, file = tmp_path / "model.pt2", tmp_path / "checkpoint.pt2", tmp_path / "sample.safetensors"
    torch.export.save(graph.program, model)
    save_file(sample, file)
    profile = dataclasses.replace(profile_of(graph, sample, loss), runtime_bytes=runtime_bytes(model))
    assert profile.runtime_bytes > 100 << 20  # Python and torch

    def proved(budget_bytes: int) -> tuple[Plan, Proof]:
        asked = PlanRequest(Budget(amount_bytes=budget_bytes), budget_scope="process")
        plan = solve(profile, asked)
        memfit.save(checkpoint, torch.export.load(model), recipe_of(profile, plan))
        return plan, prove(model, checkpoint, file, profile, plan, lambda fraction, message: None)

    roomy = profile.runtime_bytes + (200 << 20)
    plan, proof = proved(roomy)
    assert proof.certificate is not None and plan.budget_bytes + plan.runtime_bytes == roomy
    assert proof.certificate.process_peak_bytes <= roomy
    # The footprint would fit, but not the process.
    plan, proof = proved(profile.runtime_bytes + plan.predicted_peak_bytes)
    assert proof.certificate is None and proof.measured_peak_bytes <= plan.predicted_peak_bytes * 1.1
    assert {correction.moment for correction in proof.corrections} >= {plan.peak.moment}
    with pytest.raises(InfeasibleBudget) as caught:
        solve(profile, PlanRequest(Budget(amount_bytes=1 << 20), budget_scope="process"))
    assert caught.value.least_budget_bytes > profile.runtime_bytes


def test_checkpoints_train_with_torch_and_memfit_alone(case: Case, tmp_path: Path) -> None:
    graph, sample, profile = case
    plan = tight_plan(profile, Optimizer("sgd", 0.9))
    checkpoint, inputs = tmp_path / "net.pt2", tmp_path / "inputs.pt"
    memfit.save(checkpoint, graph.program, recipe_of(profile, plan))
    torch.save(sample, inputs)
    code = f"""
import sys, torch, memfit
model = memfit.load({str(checkpoint)!r})
sample = torch.load({str(inputs)!r}, weights_only=True)
targets = sample.pop("targets", None)
step = memfit.TrainingStep(model, lr=0.05)
first = step(tuple(sample.values()), targets)
for _ in range(20): last = step(tuple(sample.values()), targets)
assert last < first, (first, last)
smaller = tuple(tensor[:3] for tensor in sample.values())
step(smaller, None if targets is None else targets[:3])
model.eval(); model(*smaller); model.train()
loaded = {{m.split(".")[0] for m in sys.modules}} & {{"planner", "service", "models", "scipy", "pydantic", "safetensors"}}
print(first, last, loaded or "alone")
"""
    output = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True)
    assert output.split()[-1] == "alone"


def test_plain_torch_opens_a_checkpoint_and_the_original_takes_its_weights(case: Case, tmp_path: Path) -> None:
    graph, _, profile = case
    path = tmp_path / "net.pt2"
    memfit.save(path, graph.program, recipe_of(profile, tight_plan(profile)))
    program = torch.export.load(path)
    assert program.state_dict.keys() == graph.program.state_dict.keys()
    assert memfit.load(path).state_dict().keys() == program.state_dict.keys()
    torch.export.save(graph.program, tmp_path / "plain.pt2")
    with pytest.raises(ValueError, match="holds no plan"):
        memfit.load(tmp_path / "plain.pt2")


def test_a_plan_for_another_program_is_refused(case: Case) -> None:
    graph, _, profile = case
    recipe = dataclasses.replace(recipe_of(profile, tight_plan(profile)), graph="0" * 64)
    with pytest.raises(ValueError, match="made for another program"):
        apply(graph.program, recipe)


def test_the_record_counts_what_is_allocated() -> None:
    kept: list[Tensor] = []

    def step() -> None:
        a = torch.zeros(1000)
        b = a + 1
        del a
        kept.append(b)

    assert record(step).peak_bytes >= 8000


def test_samples_that_do_not_fit_are_refused_with_what_fits(case: Case) -> None:
    graph, sample, profile = case
    first = next(iter(sample))
    wrong = {
        "takes": {**sample, first: sample[first][:, :2]},
        "has no tensor": {name: tensor for name, tensor in sample.items() if name != first},
        "which the model does not take": {**sample, "inputs.more": sample[first]},
        "first axis": {**sample, first: sample[first][:3]},
    }
    for message, bad in wrong.items():
        with pytest.raises(BadSample, match=message):
            batches_of(bad, graph.inputs, profile.loss, None)
    with pytest.raises(BadSample, match="fewer than one batch"):
        batches_of(sample, graph.inputs, profile.loss, 100)


def test_values_that_are_not_finite_are_found() -> None:
    graph, sample, loss = graph_of("convolutional")
    sample["inputs.0"][2, 1, 0, 3] = float("nan")
    with pytest.raises(BadSample, match=r"not finite at \[2, 1, 0, 3\]"):
        batches_of(sample, graph.inputs, loss, None)
