"""The planned step against a plain loop in float64: parts of a batch, and updates as gradients come."""

import dataclasses
import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from memfit import TrainingStep
from memfit.checkpoint import apply
from memfit.micro_batches import parts
from memfit.training_step import make_optimizer
from planner.capture import TrainingGraph, capture

F = torch.nn.functional
OPTIMIZERS: tuple[dict[str, Any], ...] = ({"name": "sgd"}, {"name": "sgd", "momentum": 0.9}, {"name": "adam"}, {"name": "adamw"})


class Tagger(nn.Module):
    """Classes for every place of a sequence, with frozen batch norm and a weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv1d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.mix = nn.Conv1d(6, 6, 1)
        self.again = nn.Conv1d(6, 6, 1)
        self.again.weight = self.mix.weight
        self.head = nn.Conv1d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.lift(x)))
        result: Tensor = self.head(self.again(F.relu(self.mix(x))))
        return result


@functools.cache
def tagger() -> TrainingGraph:
    x = torch.randn(2, 2, 5, dtype=torch.float64)
    return capture(torch.export.export(Tagger().double(), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)))


def samples(batch: int, ignored: bool) -> tuple[Tensor, Tensor]:
    x, targets = torch.randn(batch, 2, 5, dtype=torch.float64), torch.randint(4, (batch, 5))
    if ignored:
        targets[torch.rand(batch, 5) < 0.4] = -100
        targets[0] = -100  # a part with nothing that counts
        targets[-1, 0] = 1
    return x, targets


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@given(
    batch=st.integers(1, 7),
    micro_batch=st.one_of(st.none(), st.integers(1, 4)),
    early=st.booleans(),
    ignored=st.booleans(),
    splits=st.sampled_from([(), ("conv1d",), ("relu",), ("conv1d", "relu"), ("conv1d", "batch_norm", "relu")]),
    size=st.integers(1, 4),
    trained=st.sampled_from([("lift", "norm", "mix", "head"), ("mix", "head"), ("norm",)]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_twenty_steps_end_where_plain_ones_do(
    optimizer: dict[str, Any],
    batch: int,
    micro_batch: int | None,
    early: bool,
    ignored: bool,
    splits: tuple[str, ...],
    size: int,
    trained: tuple[str, ...],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    model = Tagger().double()
    graph = tagger()
    exact = graph.exact_recipe("cross_entropy")
    recipe = dataclasses.replace(
        exact,
        optimizer=optimizer,
        trained=tuple(name for name in exact.trained if name.split(".")[0] in trained),
        micro_batch=micro_batch,
        early_updates=early,
        splits=splits,
        slice=size,
    )
    step = TrainingStep(apply(graph.program, recipe), lr=0.02)
    step.model.load_state_dict(model.state_dict())
    model.norm.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in recipe.trained)
    plain = make_optimizer([p for p in model.parameters() if p.requires_grad], optimizer, lr=0.02)
    for _ in range(20):
        x, targets = samples(batch, ignored)
        loss = F.cross_entropy(model(x), targets)
        plain.zero_grad()
        loss.backward()
        plain.step()
        assert step(x, targets) == pytest.approx(float(loss.detach()), rel=1e-9)
        assert all(p.grad is None for p in step.model.parameters())
    for (name, ours), (_, truth) in zip(step.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-8, atol=1e-10, msg=name)


def test_parts_keep_the_form_of_the_inputs() -> None:
    x = torch.arange(5.0)
    for inputs in (x, (x, x), {"x": x}):
        for part, _, weight in parts(inputs, None, "output:loss", 2):
            assert type(part) is type(inputs)
            assert weight in (0.4, 0.2)


def test_what_is_dropped_in_slices_is_dropped_again_for_the_gradient() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.second(F.dropout(self.first(x), 0.5, True))
            return result

    x, targets = torch.randn(7, 4), torch.randint(3, (7,))
    model = Dropping()
    graph = capture(torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)))
    recipe = dataclasses.replace(graph.exact_recipe("cross_entropy"), splits=("dropout",), slice=3)
    step = TrainingStep(apply(graph.program, recipe), lr=0.1)
    torch.manual_seed(5)
    loss = step.backward(x, targets)
    after = torch.rand(1)
    torch.manual_seed(5)
    middle = torch.cat([F.dropout(model.first(some), 0.5, True) for some in x.split(3)])
    truth = F.cross_entropy(model.second(middle), targets)
    assert torch.rand(1) == after
    truth.backward()
    assert loss == pytest.approx(float(truth.detach()))
    for ours, plain in zip(step.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad)


def test_a_split_that_more_than_one_value_crosses_is_refused() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            result: Tensor = y + self.second(F.relu(y))
            return result

    graph = capture(torch.export.export(Residual(), (torch.randn(2, 4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)))
    for operation in ("relu", "nothing"):
        recipe = dataclasses.replace(graph.exact_recipe("mse"), splits=(operation,), slice=1)
        with pytest.raises(ValueError, match="divides the model after"):
            TrainingStep(apply(graph.program, recipe), lr=0.1)


class Labelling(nn.Module):
    """Returns the mean loss over the places whose label counts."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.head(x).mT, labels)}


def test_parts_of_a_models_own_loss_are_refused_where_they_would_not_add_up() -> None:
    x, labels = torch.randn(4, 5, 3, dtype=torch.float64), torch.randint(4, (4, 5))
    model = Labelling().double()
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in range(2))
    graph = capture(torch.export.export(model, (x, labels), dynamic_shapes=dynamic))
    step = TrainingStep(apply(graph.program, dataclasses.replace(graph.exact_recipe("output:loss"), micro_batch=2)), lr=0.0)
    labels[:, -1] = -100  # evenly
    step.backward((x, labels))
    model(x, labels)["loss"].backward()
    torch.testing.assert_close(step.model.get_parameter("head.weight").grad, model.head.weight.grad)
    labels[3, :2] = -100
    with pytest.raises(ValueError, match="not spread evenly"):
        step.backward((x, labels))
