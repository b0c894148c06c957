"""A model in segments against the plain one in float64: what is run again, dropped again, read by all, and updated early."""

import dataclasses
import functools
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from memfit import TrainingStep
from memfit.checkpoint import apply
from memfit.training_step import make_optimizer
from planner.capture import TrainingGraph, capture

F = torch.nn.functional
ENDS = ("add", "add_1", "add_2", "add_3")  # of the blocks


class Blocks(nn.Module):
    """Residual blocks that read a second input, through what is worked out of it once."""

    def __init__(self, dropped: float = 0.0) -> None:
        super().__init__()
        self.up, self.down = (nn.ModuleList(nn.Linear(*sizes) for _ in ENDS) for sizes in ((4, 6), (6, 4)))
        self.head, self.dropped = nn.Linear(4, 3), dropped

    def block(self, n: int, x: Tensor, kept: Tensor) -> Tensor:
        y = F.dropout(self.down[n](F.relu(self.up[n](x))), self.dropped, True)
        return x + y * kept

    def forward(self, x: Tensor, masked: Tensor) -> Tensor:
        kept = (masked == 0).to(x.dtype)[:, None]
        for n in range(len(ENDS)):
            x = self.block(n, x, kept)
        result: Tensor = self.head(x)
        return result


@functools.cache
def blocks(dropped: float = 0.0) -> TrainingGraph:
    x, masked = batch(4)[:2]
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in range(2))
    return capture(torch.export.export(Blocks(dropped).double(), (x, masked), dynamic_shapes=dynamic))


def batch(samples: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(samples, 4, dtype=torch.float64), torch.randint(2, (samples,)), torch.randint(3, (samples,))


some_ends = st.sampled_from([ends for n in range(1, 5) for ends in combinations(ENDS, n)])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@given(
    splits=some_ends,
    samples=st.integers(1, 5),
    size=st.integers(1, 5),
    micro_batch=st.one_of(st.none(), st.integers(1, 4)),
    early=st.booleans(),
    frozen=st.sets(st.integers(0, 3), max_size=3),
    in_place=st.booleans(),
)
@settings(deadline=None, max_examples=30)
def test_steps_in_segments_end_where_plain_ones_do(
    momentum: float,
    splits: tuple[str, ...],
    samples: int,
    size: int,
    micro_batch: int | None,
    early: bool,
    frozen: set[int],
    in_place: bool,
) -> None:
    torch.manual_seed(samples)
    graph, model = blocks(), Blocks().double()
    exact = graph.exact_recipe("cross_entropy")
    recipe = dataclasses.replace(
        exact,
        optimizer={"name": "sgd", "momentum": momentum},
        trained=tuple(name for name in exact.trained if not any(name.startswith((f"up.{n}.", f"down.{n}.")) for n in frozen)),
        micro_batch=micro_batch,
        early_updates=early,
        splits=splits,
        slice=size,
        in_place=("relu", "relu_2") if in_place else (),
    )
    step = TrainingStep(apply(graph.program, recipe), lr=0.1)
    step.model.load_state_dict(model.state_dict())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in recipe.trained)
    plain = make_optimizer([p for p in model.parameters() if p.requires_grad], recipe.optimizer, lr=0.1)
    for _ in range(3):
        x, masked, targets = batch(samples)
        loss = F.cross_entropy(model(x, masked), targets)
        plain.zero_grad()
        loss.backward()
        plain.step()
        assert step((x, masked), targets) == pytest.approx(float(loss.detach()), rel=1e-10)
        assert all(p.grad is None for p in step.model.parameters())
    for (name, ours), (_, truth) in zip(step.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-10, msg=name)


@given(splits=some_ends, size=st.integers(1, 5))
@settings(deadline=None, max_examples=20)
def test_each_segment_drops_again_what_it_dropped(splits: tuple[str, ...], size: int) -> None:
    graph, model = blocks(0.5), Blocks(0.5).double()
    x, masked, targets = batch(5)
    step = TrainingStep(apply(graph.program, dataclasses.replace(graph.exact_recipe("cross_entropy"), splits=splits, slice=size)), lr=0.1)
    step.model.load_state_dict(model.state_dict())
    torch.manual_seed(5)
    loss = step.backward((x, masked), targets)
    after = torch.rand(1)
    torch.manual_seed(5)
    kept, first = (masked == 0).double()[:, None], 0
    for end in (*(ENDS.index(split) + 1 for split in splits), len(ENDS)):
        at_once = size if end <= ENDS.index(splits[-1]) + 1 else len(x)
        pairs = list(zip(x.split(at_once), kept.split(at_once), strict=True))
        x = torch.cat([functools.reduce(lambda y, n: model.block(n, y, of_some), range(first, end), some) for some, of_some in pairs])
        first = end
    truth = F.cross_entropy(model.head(x), targets)
    assert torch.rand(1) == after
    truth.backward()
    assert loss == pytest.approx(float(truth.detach()))
    for (name, ours), (_, plain) in zip(step.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad, rtol=0, atol=1e-10, msg=name)
