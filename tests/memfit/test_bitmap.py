"""What is above zero and where: exact where there is room, nearer to it than the mean where there is little, and the bits right always."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfit import bits, compaction, native
from memfit.forms import Bitmap, Held
from memfit.forms.quantised import GROUP
from memfit.operators.conv import ConvArguments, convolution
from memfit.operators.held import Hold
from memfit.operators.pointwise import Rectifier, rectified
from planner.record import record
from tests.memfit.test_operators import random, relative_error, saved_bytes

F = torch.nn.functional
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
shapes = st.lists(st.integers(1, 9), min_size=2, max_size=5).map(tuple) | st.just((3, 40, 17))
widths = st.sampled_from([None, 8, 4])


def restored(form: Bitmap, x: Tensor, held: Held | None = None) -> Tensor:
    return form.restore(held or form.compress(x), x.shape, 0, x.shape[0])


@given(shape=shapes, seed=st.integers(0, 9), dtype=st.sampled_from(DTYPES), share=st.sampled_from([0.0, 0.3, 1.0]))
@settings(deadline=None, max_examples=200)
def test_exact_where_there_is_room(shape: tuple[int, ...], seed: int, dtype: torch.dtype, share: float) -> None:
    x = (random(shape, seed) + share - 0.5).to(dtype)
    above = float(x.gt(0).double().mean())
    for form in (Bitmap(above, 0.0), Bitmap(0.0, 3.0), Bitmap(1.0, 0.0)):
        assert torch.equal(restored(form, x), x.clamp(min=0))


@given(shape=shapes, seed=st.integers(0, 9), width=st.sampled_from([8, 4]), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None, max_examples=100)
def test_an_element_is_restored_to_half_a_step_of_its_group(shape: tuple[int, ...], seed: int, width: int, dtype: torch.dtype) -> None:
    x = random(shape, seed).to(dtype)
    again = restored(Bitmap(1.0, 0.0, width), x).flatten(1)
    for sample, ours in zip(x.flatten(1), again, strict=True):
        assert torch.equal(ours[sample <= 0], torch.zeros_like(ours[sample <= 0]))
        for values, near in zip(sample[sample > 0].split(GROUP), ours[sample > 0].split(GROUP), strict=True):
            if not values.numel():
                continue
            half = float(values.max() - values.min()) / (2**width - 1) / 2
            assert float((near - values).abs().max()) <= half * (1 + 1e-9) + 1e-6 * (dtype == torch.float32)


@given(shape=shapes, seed=st.integers(0, 9), share=st.floats(0, 1), spread=st.floats(0, 1), width=widths, dtype=st.sampled_from(DTYPES))
@settings(deadline=None, max_examples=200)
def test_more_than_there_is_room_for(
    shape: tuple[int, ...], seed: int, share: float, spread: float, width: int | None, dtype: torch.dtype
) -> None:
    """The bytes and the bits stay, zeros stay zeros, and no element is further off than its sample's elements are from one another."""
    x, form = random(shape, seed).to(dtype), Bitmap(share, spread, width)
    held = form.compress(x)
    assert sum(tensor.untyped_storage().nbytes() for tensor in held) == form.held_bytes(shape, x.element_size())
    assert torch.equal(held[0], compaction.pack_above_zero(x)) and torch.equal(held[0], bits.pack_between(x, 0.0, float("inf")))
    for sample, ours in zip(x.flatten(1), restored(form, x, held).flatten(1), strict=True):
        assert not bool(ours[sample <= 0].any())
        values, near = sample[sample > 0], ours[sample > 0]
        if values.numel():
            assert float(values.min()) * 0.99 <= float(near.min()) and float(near.max()) <= float(values.max()) * 1.01
    if int(x.gt(0).sum()) <= form.most_above(shape[0], prod(shape[1:])) and width is None:
        assert torch.equal(restored(form, x, held), x.clamp(min=0))


def test_less_room_is_further_off_and_at_the_worst_the_mean() -> None:
    x = random((4, 3000), 0).float()
    errors = [relative_error(restored(Bitmap(share, 0.0), x), x.clamp(min=0)) for share in (0.52, 0.5 / 3, 0.5 / 6, 0.5 / 12, 0.0)]
    assert errors == sorted(errors) and errors[0] == 0 < errors[1] < 0.01 and errors[-2] < 0.4
    truth, worst = x.clamp(min=0), restored(Bitmap(0.0, 0.0), x)
    means = truth.sum(1, keepdim=True) / truth.gt(0).sum(1, keepdim=True)
    torch.testing.assert_close(worst, torch.where(x > 0, means, 0.0))


@pytest.mark.parametrize("width", [None, 8, 4])
@pytest.mark.parametrize("x", [torch.zeros(4, 3, 5, 5), -torch.ones(4, 3, 5, 5), torch.full((4, 3, 5, 5), -0.0)])
def test_nothing_above_zero(width: int | None, x: Tensor) -> None:
    for form in (Bitmap(0.0, 0.0, width), Bitmap(0.5, 0.0, width)):
        assert torch.equal(restored(form, x), torch.zeros_like(x))


@pytest.mark.parametrize("width", [None, 8, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_what_is_not_finite_is_not_hidden_and_stays_in_its_sample(width: int | None, value: float, share: float) -> None:
    x = random((3, 300), 0).float()
    x[1, 7] = value
    again = restored(Bitmap(share, 0.0, width), x)
    assert not bool(again[1, 7].isfinite()) and bool(again[[0, 2]].isfinite().all())
    if width is None and share == 1.0:
        torch.testing.assert_close(again, x.clamp(min=0), rtol=0, atol=0, equal_nan=True)


def test_a_smaller_last_batch_has_its_share_of_the_room() -> None:
    form = Bitmap(0.5, 0.25)
    for batch in (8, 3, 1):
        x = random((batch, 4, 6, 6), batch)
        assert torch.equal(restored(form, x), x.clamp(min=0))
        assert sum(t.nbytes for t in form.compress(x)) == form.held_bytes((batch, 4, 6, 6), 8)
    assert [form.most_above(n, 100) for n in (16, 4, 1)] == [900, 250, 75]


def test_strided_tensors_are_held_by_their_values() -> None:
    x = random((4, 6, 5, 3), 0)
    for view in (x.permute(0, 3, 1, 2), x.to(memory_format=torch.channels_last), x[:, ::2], x[:1].expand(4, -1, -1, -1)):
        assert torch.equal(restored(Bitmap(1.0, 0.0), view), view.clamp(min=0).contiguous())


@pytest.mark.skipif(native.library() is None, reason="memfit was installed without a compiler")
@given(rows=st.integers(1, 4), elements=st.integers(1, 99), seed=st.integers(0, 99), kept=st.sampled_from([-9, -1, 0, 1, 9]), width=widths)
@settings(deadline=None, max_examples=200)
def test_c_makes_the_same_as_torch(rows: int, elements: int, seed: int, kept: int, width: int | None) -> None:
    x = (random((rows, elements), seed) + kept).float()
    x.view(-1)[::11] = float("nan")
    x.view(-1)[5::23] = -0.0
    form, cut = Bitmap(1.0, 0.0, width), rows // 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        patch.setattr(compaction, "PIECE", 16)  # so that few elements are several pieces
        held = form.compress(x)
        parts = [form.restore(held, x.shape, cut, rows), form.restore(held, x.shape, 0, rows)]
    ours = form.compress(x)
    assert torch.equal(ours[0], held[0]) and torch.equal(ours[2], held[2])  # of the rest, what nothing is written to says nothing
    for start, part in zip((cut, 0), parts, strict=True):
        torch.testing.assert_close(form.restore(ours, x.shape, start, rows), part, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(native.library() is None, reason="memfit was installed without a compiler")
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_by_threads(threads: int) -> None:
    x = random((5, 4099), 0).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "LEAST_PIECE", 10)
        patch.setattr(native, "threads", lambda: threads)
        form = Bitmap(1.0, 0.0)
        held = form.compress(x)
        for start, stop in ((0, 5), (1, 2), (2, 5)):
            assert torch.equal(form.restore(held, x.shape, start, stop), x[start:stop].clamp(min=0))


@pytest.mark.parametrize("over_input", [True, False])
@pytest.mark.parametrize("over_gradient", [True, False])
@pytest.mark.parametrize("form", [Bitmap(1.0, 0.0), Bitmap(0.1, 0.0), Bitmap(1.0, 0.0, 8), Bitmap(1.0, 0.0, 4)], ids=str)
def test_a_relu_and_a_convolution_share_it(form: Bitmap, over_input: bool, over_gradient: bool) -> None:
    """All gradients are exact, but the weight's, which is that of the restored activation; and both hold the same bits."""
    x, weight = random((3, 4, 7, 5), 1).requires_grad_(), random((6, 4, 3, 3), 2).requires_grad_()
    upstream = random((3, 6, 7, 5), 3)
    settings = ConvArguments([1, 1], [1, 1], [1, 1])
    before = x * 1
    held = Hold(form)(before)
    assert held is not None
    hidden = rectified(before, Rectifier(0.0), over_input=over_input, over_gradient=over_gradient, held=held)
    assert (hidden.data_ptr() == before.data_ptr()) == over_input
    assert saved_bytes(hidden) == bits.packed_bytes(x.numel())
    ours = convolution(hidden, weight, None, settings, held)
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for f in (hidden, ours) for t in f.grad_fn.saved_tensors}  # type: ignore[union-attr]
    assert sum(kept.values()) == form.held_bytes((3, 4, 7, 5), 8) + weight.nbytes
    truth = F.conv2d(F.relu(x), weight, padding=1)
    assert torch.equal(hidden, F.relu(x)) and relative_error(ours, truth) <= 1e-12
    our_x, our_weight = torch.autograd.grad(ours, [x, weight], upstream)
    (x_grad,) = torch.autograd.grad(truth, x, upstream)
    (weight_grad,) = torch.autograd.grad(F.conv2d(restored(form, x.detach()), weight, padding=1), weight, upstream)
    assert relative_error(our_x, x_grad) <= 1e-12
    assert relative_error(our_weight, weight_grad) <= 1e-12


@pytest.mark.parametrize("width", [None, 8, 4])
@pytest.mark.parametrize("share", [0.6, 0.3, 0.1, 0.0])
@pytest.mark.parametrize("by_torch", [True, False])
def test_no_more_is_live_than_is_told(width: int | None, share: float, by_torch: bool) -> None:
    x, form, made = random((3, 16, 56, 56), 0).float(), Bitmap(share, 0.0, width), list[Held]()
    with pytest.MonkeyPatch.context() as patch:
        if by_torch:
            patch.setattr(native, "library", lambda: None)
        assert record(lambda: made.append(form.compress(x))).peak_bytes <= form.compress_bytes(tuple(x.shape), 4)
        assert record(lambda: form.restore(made[0], x.shape, 1, 3)).peak_bytes <= form.restore_bytes(tuple(x.shape), 4, 2)
