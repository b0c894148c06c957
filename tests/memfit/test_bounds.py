"""The bounds on errors that the documentation states, against real gradients."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfit.forms import Basis, Form, Hosvd, Int4, Svd
from memfit.operators import conv, linear
from tests.memfit.test_operators import bases, convolutions, dense, forms, random


def restored(form: Form, x: Tensor) -> Tensor:
    return form.restore(form.compress(x), x.shape, 0, x.shape[0])


@given(data=st.data(), shape=st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_a_projection_loses_the_energy_it_leaves_out(data: st.DataObject, shape: tuple[int, ...], seed: int) -> None:
    x = random(shape, seed)
    ranks = tuple(data.draw(st.integers(1, size)) for size in shape)
    for form in (data.draw(bases(shape)), Hosvd(ranks, 1.0)):
        core = form.compress(x)[0]
        lost = float((x - restored(form, x)).square().sum())
        assert lost == pytest.approx(float(x.square().sum() - core.square().sum()), abs=1e-9)


@given(case=convolutions(), form=st.data())
@settings(deadline=None, max_examples=60)
def test_the_gradient_of_a_convolution_is_off_by_no_more_than_the_bound(case: dict[str, Any], form: st.DataObject) -> None:
    x = random(case["x"], case["seed"])
    output = dense(x, random(case["weight"], 1), None, case["arguments"])
    gradient = random(tuple(output.shape), 2)
    chosen = form.draw(forms(case["x"]).filter(lambda each: each is not None))
    error = restored(chosen, x) - x
    lost = conv.weight_gradient(gradient, error, torch.Size(case["weight"]), case["arguments"])
    largest = float(torch.linalg.svdvals(gradient.movedim(1, 0).flatten(1))[0])
    places = lost[0, 0].numel()
    assert float(lost.norm()) <= places**0.5 * largest * float(error.norm()) * (1 + 1e-9) + 1e-12


@given(shape=st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple), outputs=st.integers(1, 5), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_the_gradient_of_a_linear_layer_is_off_by_no_more_than_the_bound(shape: tuple[int, ...], outputs: int, seed: int) -> None:
    x, gradient = random(shape, seed), random((*shape[:-1], outputs), seed + 1)
    for form in (Int4(), Svd((0, 1), 1, 0.9)):
        error = restored(form, x) - x
        lost = linear.weight_gradient(gradient, error)
        largest = float(torch.linalg.svdvals(gradient.flatten(0, -2))[0])
        assert float(lost.norm()) <= largest * float(error.norm()) * (1 + 1e-9) + 1e-12


def test_the_squared_threshold_is_no_bound() -> None:
    """Two equal directions and ε = ½: half of the energy is lost, not a quarter."""
    x = torch.eye(2, dtype=torch.float64)
    lost = float((x - restored(Svd((0, 1), 2, 0.5), x)).square().sum() / x.square().sum())
    assert lost == pytest.approx(0.5) and lost > (1 - 0.5) ** 2


def test_fewer_ranks_of_fixed_directions_lose_more() -> None:
    x = random((5, 4, 6), 0)
    lost = []
    for rank in (4, 3, 2, 1):
        factor = torch.eye(4, dtype=torch.float64)[:, :rank] if rank < 4 else torch.zeros(0, dtype=torch.float64)
        lost.append(float((x - restored(Basis((4, 6), (rank, 6), factor.flatten()), x)).norm()))
    assert lost == sorted(lost) and lost[0] == 0.0 < lost[1]
