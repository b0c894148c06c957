"""What a profile says of seconds and bytes."""

from itertools import count

import pytest
import torch
from torch import Tensor, nn

from planner.capture import capture
from planner.fidelity import holders_of_values
from planner.footprint import timeline
from planner.plan import Schedule
from planner.profiling import TIMED, part_seconds
from planner.record import record
from planner.request import Optimizer
from planner.sample import batches_of
from planner.timeline import exact_choices
from tests.planner.networks import export, profile_of


def test_seconds_of_a_size_are_those_of_its_own_steps_for_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    sample = {"inputs.0": torch.randn(4, 3, 8, 8), "targets": torch.randint(5, (4,))}
    monkeypatch.setattr("planner.profiling.perf_counter", count(step=1.0).__next__)  # a second for whatever is timed
    profile = profile_of(capture(export(model, sample)), sample, "cross_entropy")
    seconds = {}
    for step in profile.steps:
        made = timeline(profile, Optimizer(), Schedule(step.batch_size))
        seconds[step.batch_size] = made.seconds(exact_choices(step, frozenset(p.name for p in profile.parameters)))
    assert seconds == pytest.approx({4: 1.0, 2: 2.0, 1: 4.0})


def test_timed_gradients_are_added_up_and_let_go() -> None:
    model = nn.Linear(3, 2)
    sample = {"inputs.0": torch.randn(4, 3), "targets": torch.randint(2, (4,))}
    graph = capture(export(model, sample))
    seen = []
    graph.module.get_parameter("bias").register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    batch = batches_of(sample, graph.inputs, "cross_entropy", None)[0]
    part_seconds(graph.module, batch, "cross_entropy")
    torch.testing.assert_close(torch.stack(seen), torch.stack([n * seen[0] for n in range(1, TIMED + 1)]))
    assert all(parameter.grad is None for parameter in graph.module.parameters())


def test_the_record_counts_what_is_allocated() -> None:
    kept: list[Tensor] = []

    def step() -> None:
        a = torch.zeros(1000)
        b = a + 1
        del a
        kept.append(b)

    assert record(step).peak_bytes >= 8000


def test_with_the_batch_on_another_axis_elements_are_held_by_themselves() -> None:
    """Attention of torch's own takes tokens first: what stands at one token is of another shape for each number of samples."""
    encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(16, 16), encoder, nn.Flatten(), nn.Linear(6 * 16, 4))
    sample = {"inputs.0": torch.randn(8, 6, 16), "targets": torch.randint(4, (8,))}
    graph = capture(export(model, sample))
    profile = profile_of(graph, sample, "cross_entropy")
    assert [step.batch_size for step in profile.steps] == [8, 4, 2, 1]
    offered: dict[str, set[str]] = {}
    for step in profile.steps:
        for activation in step.activations:
            for form in activation.forms:
                offered.setdefault(form.value, set()).update(option.technique for option in form.options)
    values = [value for value in holders_of_values(graph) if value in graph.of_any_shape]
    assert any(value in offered for value in values)
    assert all(offered.get(value, set()) <= {"int8", "int4", "bfloat16", "recompute"} for value in values)
    assert any("coded" in techniques for techniques in offered.values())  # of values with the batch first
