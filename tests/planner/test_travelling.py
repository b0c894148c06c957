"""What travels, against whole steps: the gradients of every parameter with one input of one operation in few bits."""

import dataclasses

import pytest
import torch
from torch import Tensor

from memfit.checkpoint import apply
from memfit.losses import loss_of
from memfit.recipe import HeldForm
from planner.capture import without_dropout
from planner.sample import batches_of
from planner.techniques import settings_of
from planner.travelling import SAMPLES, measure_travelling
from tests.planner.networks import graph_of


def tell(fraction: float) -> None:
    assert 0 < fraction <= 1


@pytest.mark.parametrize("name", ["attending", "gated"])
def test_energies_are_those_of_whole_steps(name: str) -> None:
    graph, sample, loss = graph_of(name, torch.float64)
    batch = batches_of(sample, graph.inputs, loss, None)[0]
    travelled = measure_travelling(graph, batch, loss, apart=False, tell=tell)
    assert {operation for _, operation in travelled} >= ({"layer_norm", "gelu"} if name == "attending" else {"group_norm", "silu"})

    def gradients(*forms: HeldForm) -> dict[str, Tensor]:
        model = without_dropout(apply(graph.program, dataclasses.replace(graph.exact_recipe(loss), forms=forms)))
        model.zero_grad()
        loss_of(loss, model(*batch.inputs), batch.targets).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    truth = gradients()
    for (value, operation), measured in travelled.items():
        assert [each.candidate.form.technique for each in measured] == ["int4", "int8"]
        for each in measured:
            form = each.candidate.form
            ours = gradients(HeldForm(value, (operation,), form.technique, dict(settings_of(form))))
            for parameter, gradient in truth.items():
                truly = float((ours[parameter] - gradient).square().sum())
                lost = sum(each.lost_energy.get(parameter, [0.0]))
                assert lost == pytest.approx(truly, rel=1e-6, abs=1e-22), (value, operation, parameter)


def test_a_few_samples_tell_of_all() -> None:
    """The errors of samples are independent: a batch's is about what some of its samples, counted in proportion, say."""
    graph, _, loss = graph_of("attending")
    torch.manual_seed(0)
    sample = {"inputs.tokens": torch.randint(1, 11, (64, 6)), "inputs.labels": torch.randint(3, (64,))}
    batch = batches_of(sample, graph.inputs, loss, None)[0]
    assert batch.samples > SAMPLES
    few, all_ = (measure_travelling(graph, batch, loss, apart, tell) for apart in (True, False))
    energies = [(sum(a.batch_losses), sum(b.batch_losses)) for key in few for a, b in zip(few[key], all_[key], strict=True)]
    assert sum(a for a, _ in energies) == pytest.approx(sum(b for _, b in energies), rel=0.8)
