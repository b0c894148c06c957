"""Features left in the directions they are held in: what a form gives back, when that is worth it, and the bytes it takes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.allocator import step_peak_bytes
from memfit.forms import Basis, Hosvd, Projection, Subspace, Svd
from memfit.operators import conv, linear
from memfit.operators.conv import ConvArguments, convolution
from memfit.operators.held import Hold
from memfit.tucker import as_mode, multiply_mode
from tests.memfit.test_operators import forms, random

SHAPE = (32, 24, 10, 12)
BASIS = torch.cat([torch.linalg.qr(random((n, n), n))[0][:, :r].flatten().float() for n, r in ((24, 4), (10, 5), (12, 3))])


@given(data=st.data(), shape=st.lists(st.integers(1, 6), min_size=2, max_size=5).map(tuple), seed=st.integers(0, 9), cut=st.integers(0, 5))
@settings(deadline=None, max_examples=200)
def test_what_is_left_in_directions_times_these_is_the_whole(data: st.DataObject, shape: tuple[int, ...], seed: int, cut: int) -> None:
    form = data.draw(forms(shape).filter(lambda form: isinstance(form, Projection)))
    held = form.compress(random(shape, seed))
    stop = data.draw(st.integers(min(cut, shape[0] - 1) + 1, shape[0]))
    start = min(cut, stop - 1)
    whole = form.restore(held, torch.Size(shape), start, stop)
    for mode in range(1, len(shape)):
        if form.most_directions(shape, mode) == shape[mode]:
            continue
        left = form.restore(held, torch.Size(shape), start, stop, mode)
        directions = form.directions(held, shape, mode)
        assert left.shape[mode] == directions.shape[1] <= form.most_directions(shape, mode)
        turned = multiply_mode(as_mode(left.contiguous(), mode, mode + 1), directions).view(whole.shape)
        torch.testing.assert_close(turned, whole, rtol=1e-11, atol=1e-11)


PROJECTIONS = (
    Basis(SHAPE[1:], (4, 5, 3), BASIS),
    Subspace(SHAPE[1:], (4, 5, 3), BASIS),
    Hosvd((32, 4, 5, 3), 1.0),
    Hosvd((9, 4, 10, 12), 1.0),
    Hosvd((32, 4, 10, 12), 1.0),
    Svd((1, 2), 4, 1.0),
)


@pytest.mark.parametrize("form", PROJECTIONS, ids=repr)
def test_workspace_is_what_is_told(form: Projection) -> None:
    x = random(SHAPE, 0).float()
    held = form.compress(x)
    assert step_peak_bytes(lambda: form.compress(x)) <= form.compress_bytes(SHAPE, 4)
    for left in (None, 1):

        def restore(left: int | None = left) -> object:
            return form.restore(held, x.shape, 0, 32, left), torch.empty(1)  # a record of nothing at all cannot be read

        assert step_peak_bytes(restore) <= form.restore_bytes(SHAPE, 4, 32, left) + 4
    assert form.restore_bytes(SHAPE, 4, 32, 1) < form.restore_bytes(SHAPE, 4, 32) / 2


def test_a_mode_is_left_where_that_takes_fewer_multiplications() -> None:
    form = Hosvd((64, 8, 100), 1.0)
    assert linear.features_left(form, (64, 8, 100), 1000) is None  # held whole
    assert linear.features_left(Hosvd((64, 8, 30), 1.0), (64, 8, 100), 1000) == 2
    assert linear.features_left(Hosvd((4, 30), 1.0), (4, 100), 1000) is None  # the weight takes more than the few samples
    one, grouped = ConvArguments([1], [1], [1]), ConvArguments([1], [1], [1], 4)
    shape, result = (8, 24, 50), (8, 16, 50)
    assert conv.features_left(Hosvd((8, 6, 20), 1.0), shape, (16, 24, 3), result, one) == 1
    assert conv.features_left(Hosvd((8, 6, 20), 1.0), shape, (16, 6, 3), result, grouped) is None
    assert conv.features_left(Svd((0, 1), 2, 1.0), shape, (16, 24, 3), result, one) is None


CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], Any]] = {
    "linear": ((32, 50, 240), (60, 240), None),
    "conv": ((16, 48, 20, 20), (32, 48, 3, 3), ConvArguments([1, 1], [1, 1], [1, 1])),
    "pointwise": ((16, 48, 20, 20), (32, 48, 1, 1), ConvArguments([1, 1], [0, 0], [1, 1])),
    "transposed": ((16, 48, 10, 10), (48, 32, 2, 2), ConvArguments([2, 2], [0, 0], [1, 1], 1, [0, 0])),
}


@pytest.mark.parametrize("name", CASES)
def test_a_backward_restores_no_features(name: str) -> None:
    """Its peak beside that of the same backward from the whole tensor, of which the form would have to restore all at once."""
    shape, weight_shape, arguments = CASES[name]
    features = len(shape) - 1 if arguments is None else 1
    x, weight = random(shape, 0).float(), random(weight_shape, 1).float().requires_grad_()
    form = Hosvd(tuple(6 if mode == features else size for mode, size in enumerate(shape)), 1.0)

    def peak(held: Any) -> int:
        def output() -> Tensor:
            return linear.linear(x, weight, None, held) if arguments is None else convolution(x, weight, None, arguments, held)

        grad = random(tuple(output().shape), 2).float()
        outputs = [output(), output()]
        return step_peak_bytes(lambda: torch.autograd.grad(outputs.pop(), weight, grad))

    of_whole, of_held = peak(None), peak(Hold(form)(x))
    gradient = weight.nbytes * 6 // shape[features]
    assert of_held <= of_whole + gradient < of_whole + x.nbytes // 2
