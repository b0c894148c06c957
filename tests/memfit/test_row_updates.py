"""Gradients as rows and updates from them, against dense ones, in float64."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import memfit.row_updates
from memfit.checkpoint import apply
from memfit.operators.embedding import embedding
from memfit.row_updates import update_rows
from memfit.training_step import TrainingStep, make_optimizer
from planner.capture import capture

CLOSE = 1e-10
OPTIMIZERS: list[dict[str, Any]] = [{"name": "sgd"}, {"name": "sgd", "momentum": 0.9}, {"name": "adam"}, {"name": "adamw"}]


@pytest.fixture(autouse=True)
def small_ranges() -> Iterator[None]:
    """Few rows at a time, so that these small tables are updated in several ranges."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memfit.row_updates, "RANGE_BYTES", 100)
        yield


@given(
    shape=st.lists(st.integers(1, 4), max_size=3),
    size=st.tuples(st.integers(2, 9), st.integers(1, 5)),
    padding=st.integers(-1, 1),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=50)
def test_rows_are_the_gradient(shape: list[int], size: tuple[int, int], padding: int, seed: int) -> None:
    torch.manual_seed(seed)
    numbers, weight = torch.randint(size[0], shape), torch.randn(size, dtype=torch.float64, requires_grad=True)
    ours, truth = embedding(weight, numbers, padding), F.embedding(numbers, weight, padding if padding >= 0 else None)
    assert torch.equal(ours, truth)
    grad = torch.randn_like(truth)
    (rows,) = torch.autograd.grad(ours, weight, grad)
    (dense,) = torch.autograd.grad(truth, weight, grad)
    assert rows.is_sparse and rows._values().shape[0] == int((numbers != padding).sum())
    torch.testing.assert_close(rows.to_dense(), dense, rtol=CLOSE, atol=CLOSE)


@given(
    optimizer=st.sampled_from(OPTIMIZERS),
    size=st.tuples(st.integers(2, 30), st.integers(1, 5)),
    uses=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=50)
def test_updates_are_those_of_the_dense_gradient(optimizer: dict[str, Any], size: tuple[int, int], uses: int, seed: int) -> None:
    """Over some steps with another learning rate in each, some of them of a part of the rows, some of parts that add up."""
    torch.manual_seed(seed)
    ours = nn.Parameter(torch.randn(size, dtype=torch.float64))
    truth = nn.Parameter(ours.detach().clone())
    our_optimizer, its = (make_optimizer([each], optimizer, lr=0.1) for each in (ours, truth))
    for step in range(4):
        for each in (our_optimizer, its):
            each.param_groups[0]["lr"] = 0.1 / (1 + step)
        for _ in range(uses):
            numbers = torch.randint(max(1, size[0] - step), (3, 2))
            grad = torch.randn(3, 2, size[1], dtype=torch.float64)
            embedding(ours, numbers).backward(grad)
            F.embedding(numbers, truth).backward(grad)
        update_rows(our_optimizer, ours)
        its.step()
        its.zero_grad()
        assert ours.grad is None
        torch.testing.assert_close(ours, truth, rtol=CLOSE, atol=CLOSE)
    found, wanted = our_optimizer.state[ours], its.state[truth]
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[name], value, rtol=CLOSE, atol=CLOSE)
    again = make_optimizer([ours], optimizer, lr=0.1)
    again.load_state_dict(copy.deepcopy(our_optimizer.state_dict()))  # as torch's own


class Reading(nn.Module):
    """Words read twice from one table, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(40, 4, padding_idx=1), nn.Linear(4, 3)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        result: Tensor = self.head(torch.tanh(self.words(first) * self.words(second)).mean(1))
        return result


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize(
    "schedule", [{}, {"early_updates": True}, {"micro_batch": 2}, {"splits": ("mean",), "slice": 2, "early_updates": True}], ids=str
)
def test_steps_by_rows_end_where_plain_ones_do(optimizer: dict[str, Any], schedule: dict[str, Any]) -> None:
    torch.manual_seed(3)
    model, batch = Reading().double(), (torch.randint(40, (5, 3)), torch.randint(40, (5, 3)))
    axis = torch.export.Dim("batch")
    graph = capture(torch.export.export(model, batch, dynamic_shapes=({0: axis}, {0: axis})))
    recipe = dataclasses.replace(graph.exact_recipe("cross_entropy"), optimizer=optimizer, rows=("words.weight",), **schedule)
    step = TrainingStep(apply(graph.program, recipe), lr=0.05)
    step.model.load_state_dict(copy.deepcopy(model.state_dict()))
    plain = make_optimizer(list(model.parameters()), optimizer, lr=0.05)
    for _ in range(5):
        inputs, targets = (torch.randint(40, (5, 3)), torch.randint(40, (5, 3))), torch.randint(3, (5,))
        loss = F.cross_entropy(model(*inputs), targets)
        loss.backward()
        assert step.backward(inputs, targets) == pytest.approx(float(loss.detach()), rel=1e-9)
        for (_, ours), (_, truth) in zip(step.model.named_parameters(), model.named_parameters(), strict=True):
            torch.testing.assert_close(ours.grad, truth.grad, rtol=CLOSE, atol=CLOSE)  # a dense one, for who looks at it
        step.optimizer.zero_grad()
        plain.step()
        plain.zero_grad()
        step(inputs, targets)
    for (name, ours), (_, truth) in zip(step.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-8, atol=CLOSE, msg=name)
