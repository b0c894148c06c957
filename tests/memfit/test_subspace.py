"""Factors that follow the data: to the leading directions, over steps, batch sizes, saving and moving."""

from pathlib import Path

import torch
from torch import Tensor, nn

import memfit
from memfit.forms import Basis, Hosvd, Subspace
from memfit.operators.held import HeldTensor, Hold
from memfit.recipe import HeldForm
from memfit.shipped import encode
from planner.capture import capture_module

SIZES, RANKS = (12, 6, 6), (3, 2, 6)


def data(samples: int, seed: int) -> Tensor:
    """Samples of few directions of channels and rows, the same ones in every batch, and some noise."""
    channels, rows = (torch.linalg.qr(torch.randn(n, r, generator=torch.Generator().manual_seed(9)))[0] for n, r in ((12, 3), (6, 2)))
    core = torch.randn(samples, 3, 2, 6, generator=torch.Generator().manual_seed(seed))
    noise = torch.randn(samples, *SIZES, generator=torch.Generator().manual_seed(seed + 100))
    return torch.einsum("ca,rb,nabw->ncrw", channels, rows, core) + 0.02 * noise


def start() -> Tensor:
    factors = [torch.linalg.qr(torch.randn(n, r, generator=torch.Generator().manual_seed(1)))[0] for n, r in ((12, 3), (6, 2))]
    return torch.cat([factor.flatten() for factor in factors])


def lost(held: HeldTensor | None, x: Tensor) -> float:
    assert held is not None
    return float((held.form.restore(held.tensors, x.shape, 0, len(x)) - x).square().sum() / x.square().sum())


def test_steps_lead_from_any_start_to_the_best_factors_whatever_the_batch_size() -> None:
    hold = Hold(Subspace(SIZES, RANKS, start()))
    losses = [lost(hold(data(samples, samples)), data(samples, samples)) for samples in (8, 5, 8, 3, 16)]
    x = data(16, 16)
    best = Hosvd((16, *RANKS), 1.0)
    exact = float((best.restore(best.compress(x), x.shape, 0, 16) - x).square().sum() / x.square().sum())
    fixed = Basis(SIZES, RANKS, start())
    assert losses[-1] < 1.02 * exact
    assert losses[0] < 0.1 * lost(HeldTensor(fixed, fixed.compress(data(8, 8))), data(8, 8))


def test_between_two_refreshed_passes_the_directions_stay() -> None:
    hold = Hold(Subspace(SIZES, RANKS, start(), every=3))
    x = data(8, 0)
    factors, losses = [], []
    for _ in range(7):
        losses.append(lost(hold(x), x))
        factors.append(hold.get_buffer("factors").clone())
    changed = [not torch.equal(before, after) for before, after in zip([start(), *factors], factors, strict=False)]
    assert changed == [True, False, False, True, False, False, True]
    fixed = Basis(SIZES, RANKS, factors[0])
    assert losses[1] == losses[2] == lost(HeldTensor(fixed, fixed.compress(x)), x)
    assert losses[3] < losses[2]


def test_a_backward_uses_the_factors_of_its_own_forward() -> None:
    hold = Hold(Subspace(SIZES, RANKS, start()))
    first, second = data(8, 0), data(8, 1)
    held = hold(first)
    before = lost(held, first)
    hold(second)
    assert lost(held, first) == before


def test_it_is_saved_moved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.SiLU(), nn.Conv2d(12, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    x = torch.randn(4, 3, 6, 6)
    graph = capture_module(net, (x,))
    value = next(node.name for node in graph.operations if "silu" in node.name)
    settings = {"sizes": SIZES, "ranks": RANKS, "factors": encode(start().half())}
    recipe = graph.exact_recipe("cross_entropy")
    recipe = memfit.Recipe(
        **{**{f: getattr(recipe, f) for f in recipe.__slots__}, "forms": (HeldForm(value, ("conv2d_1",), "subspace", settings),)}
    )
    memfit.save(tmp_path / "net.pt2", graph.program, recipe)
    model = memfit.load(tmp_path / "net.pt2")
    step = memfit.TrainingStep(model, lr=0.0)
    holds = [module for module in model.modules() if isinstance(module, Hold)]
    before = holds[0].get_buffer("factors").clone()
    for samples in (4, 2):
        step(x[:samples], torch.zeros(samples, dtype=torch.long))
    assert not torch.equal(holds[0].get_buffer("factors"), before), "the factors follow"
    assert set(model.state_dict()) == set(net.state_dict())
    model.double()
    memfit.TrainingStep(model, lr=0.0)(x.double(), torch.zeros(4, dtype=torch.long))
    assert holds[0].get_buffer("factors").dtype == torch.float64
