"""Every exact technique with every other: gradients in float64 against the plain step's, whatever is combined."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule

import planner.footprint
import planner.plan
from memfit import row_updates
from memfit.checkpoint import apply
from memfit.losses import loss_of
from memfit.operators import held
from memfit.recipe import RECOMPUTE, HeldForm
from memfit.row_updates import RANGE_BYTES
from memfit.training_step import TrainingStep
from planner.capture import TrainingGraph, capture, without_dropout
from planner.footprint import timeline
from planner.plan import FOLD, INDEX, MASK, Schedule
from planner.profile import Profile
from planner.profiling import make_profile
from planner.request import Optimizer, ProfileSettings
from planner.sample import Batch, batches_of
from tests.planner.networks import graph_of, profile_of

CLOSE = 1e-10


@dataclass(frozen=True)
class Case:
    """A network in float64 with what was measured of it, one batch, and its plain gradients without dropout."""

    graph: TrainingGraph
    profile: Profile
    batch: Batch
    truth: dict[str, Tensor]


@cache
def case(name: str) -> Case:

    graph, sample, loss = graph_of(name, torch.float64)
    batch = batches_of(sample, graph.inputs, loss, None)[0]
    original = without_dropout(graph.module)
    loss_of(loss, original(*batch.inputs), batch.targets).backward()
    truth = {name: p.grad.clone() for name, p in original.named_parameters() if p.grad is not None}
    original.zero_grad()
    original.train()
    return Case(graph, profile_of(graph, sample, loss), batch, truth)


@pytest.fixture(autouse=True)
def small_ranges() -> Iterator[None]:
    """Restore few samples and update few rows at a time, so that these small tensors are worked through in several ranges."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held, "RESTORE_BYTES", 1000)
        patch.setattr(row_updates, "RANGE_BYTES", 1000)
        yield


@pytest.mark.parametrize("name", ["convolutional", "attending", "gated", "written", "unet", "rectified"])
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_gradients_are_the_plain_ones(name: str, data: st.DataObject) -> None:
    it = case(name)
    sizes, whole = st.sampled_from([step.batch_size for step in it.profile.steps[1:]]), it.profile.whole.batch_size
    schedules = st.builds(Schedule, sizes)
    if it.profile.splits:
        places = st.sets(st.sampled_from(it.profile.splits), min_size=1, max_size=4)
        splits = places.map(lambda some: tuple(split for split in it.profile.splits if split in some))
        schedules |= st.builds(Schedule, st.just(whole), st.booleans(), splits, sizes | st.just(whole))
    schedule = data.draw(schedules, label="schedule")
    step = timeline(it.profile, Optimizer(), schedule).step
    operations = step.operations
    masks, forms, held = set[str](), list[HeldForm](), set[str]()
    for activation in step.activations:
        served = set[int]()
        for form in activation.forms:
            exact = [None, *(option for option in form.options if not option.lost_energy and not served & set(form.holders))]
            option = data.draw(st.sampled_from(exact), label=form.value)
            holders = tuple(operations[activation.holders[h].operation].name for h in form.holders)
            if option is not None and (option.technique in (MASK, INDEX) or holders == (form.value,)):
                masks.add(form.value)
            elif option is not None:
                assert option.technique in (RECOMPUTE, FOLD, "bitmap")
                forms.append(HeldForm(form.value, holders, option.technique, dict(option.settings)))
                held.update(step.activations[source].name for source in option.sources)
            if option is not None:
                served |= set(form.holders)
        if served != set(range(len(activation.holders))):
            held.add(activation.name)  # some holder needs it whole
    over = {o.name: o.over for o in operations if o.over is not None}
    may = [name for name, it in over.items() if it.activation is None or step.activations[it.activation].name not in held]
    in_place = tuple(name for name in may if data.draw(st.integers(0, 3), label=f"over {name}"))
    everything = it.graph.exact_recipe(it.profile.loss)
    trained = tuple(p for p in everything.trained if data.draw(st.integers(0, 4), label=p)) or everything.trained
    recipe = dataclasses.replace(
        everything,
        trained=trained,
        masks=tuple(masks),
        forms=tuple(forms),
        in_place=in_place,
        rows=tuple(p for p in it.profile.whole.rows if p in trained and data.draw(st.booleans(), label=f"rows of {p}")),
        micro_batch=schedule.micro_batch,
        early_updates=schedule.early_updates,
        splits=schedule.splits,
        slice=schedule.slice,
    )
    model = without_dropout(apply(it.graph.program, recipe))
    TrainingStep(model, lr=0.0).backward(it.batch.inputs, it.batch.targets)
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == it.truth.keys() & set(trained)
    largest = max(float(gradient.norm()) for gradient in it.truth.values())
    for parameter, gradient in ours.items():  # that of a key's bias is zero but for rounding
        truth = it.truth[parameter]
        assert float((gradient - truth).norm() / truth.norm().clamp_min(1e-6 * largest)) <= CLOSE, parameter


@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_batch_statistics_move_once_a_step(data: st.DataObject) -> None:
    graph, profile, batch, start = batch_normed()
    recipe = dataclasses.replace(graph.exact_recipe(profile.loss), masks=(), forms=())
    masks, forms = set[str](), list[HeldForm]()
    for activation in profile.whole.activations:
        served = set[int]()
        for form in activation.forms:
            exact = [None, *(option for option in form.options if not option.lost_energy and not served & set(form.holders))]
            option = data.draw(st.sampled_from(exact))
            holders = tuple(profile.whole.operations[activation.holders[h].operation].name for h in form.holders)
            if option is not None and (option.technique in (MASK, INDEX) or holders == (form.value,)):
                masks.add(form.value)
            elif option is not None:
                forms.append(HeldForm(form.value, holders, option.technique, dict(option.settings)))
            if option is not None:
                served |= set(form.holders)

    def state_of(model: GraphModule) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}

    model = without_dropout(apply(graph.program, dataclasses.replace(recipe, masks=tuple(masks), forms=tuple(forms))))
    model.load_state_dict(start)
    TrainingStep(model, lr=0.0).backward(batch.inputs, batch.targets)
    ours, our_statistics = state_of(model)
    plain = without_dropout(graph.module)
    plain.load_state_dict(start)
    loss_of(profile.loss, plain(*batch.inputs), batch.targets).backward()
    truth, statistics = state_of(plain)
    assert any(not torch.equal(statistics[name], start[name]) for name in statistics)
    for name, value in statistics.items():
        assert torch.equal(our_statistics[name], value), name
    for name, gradient in truth.items():
        assert float((ours[name] - gradient).norm() / gradient.norm().clamp_min(1e-9)) <= CLOSE, name


@cache
def batch_normed() -> tuple[TrainingGraph, Profile, Batch, dict[str, Tensor]]:
    """The convolutional network with batch statistics, and its state before any step."""
    frozen, sample, loss = graph_of("convolutional", torch.float64)
    graph = capture(frozen.program, "batch")
    start = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    settings = ProfileSettings(loss=loss, batch_norm="batch")
    profile = make_profile(graph, sample, settings, lambda fraction, message: None)
    assert len(profile.steps) == 1  # samples touch one another: no parts, no slices
    return graph, profile, batches_of(sample, graph.inputs, loss, None)[0], start


def test_planner_and_device_mean_the_same() -> None:
    assert planner.plan.RECOMPUTE == RECOMPUTE
    assert planner.footprint.RANGE_BYTES == RANGE_BYTES
