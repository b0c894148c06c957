"""Every operator against float64 autograd: output, input and bias gradients exact; the weight gradient that of the restored activation."""

from collections.abc import Iterator
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfit.forms import Basis, Bfloat16, Bitmap, Coded, Form, Hosvd, Int4, Int8, PatchMean, Subspace, Svd
from memfit.operators import held
from memfit.operators.conv import ConvArguments, convolution, input_gradient
from memfit.operators.folded import convolution_before_norm, norm_after_convolution
from memfit.operators.held import HeldTensor, Hold
from memfit.operators.linear import linear
from memfit.operators.norm import frozen_batch_norm
from planner.record import record

F = torch.nn.functional
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
PADDED = ConvArguments([1, 1], [1, 1], [1, 1])
CLOSE = 1e-10


@pytest.fixture(autouse=True, scope="module")
def small_ranges() -> Iterator[None]:
    """Restore few samples at a time, so that these small tensors are worked through in several ranges."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held, "RESTORE_BYTES", 300)
        yield


def relative_error(ours: Tensor, truth: Tensor) -> float:
    return float(((ours - truth).norm() / truth.norm().clamp_min(1e-30)).detach())


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@st.composite
def coded(draw: st.DrawFn, shape: tuple[int, ...]) -> Coded:
    """A coded form with any transform, table and bytes."""
    feature = draw(st.integers(1, len(shape) - 1))
    grid = [size for axis, size in enumerate(shape) if axis not in (0, feature)]
    blocks = tuple(draw(st.sampled_from([part for part in range(1, size + 1) if size % part == 0])) for size in grid)
    features, seed = shape[feature], draw(st.integers(0, 9))
    kept = draw(st.integers(1, features))
    basis = torch.linalg.qr(random((features, features), seed))[0][:kept].half() if draw(st.booleans()) else None
    if basis is not None and draw(st.booleans()):
        basis = (basis.float() * 127).round().to(torch.int8)
    positions = (features if basis is None else kept) * prod(blocks)
    deviations = torch.randint(150, 256, (positions,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Coded(
        feature=feature,
        blocks=blocks,
        sample_bytes=draw(st.integers(0, 3 * prod(shape[1:]))),
        largest=2.0,
        bounds=(),
        dither=False,
        mean=random((features,), seed).float(),
        basis=basis,
        deviations=deviations if draw(st.booleans()) else None,
    )


@st.composite
def bases(draw: st.DrawFn, shape: tuple[int, ...]) -> Basis:
    """Fixed random directions of any ranks."""
    ranks = tuple(draw(st.integers(1, size)) for size in shape[1:])
    factors = [torch.linalg.qr(random((n, n), n))[0][:, :r].flatten() for n, r in zip(shape[1:], ranks, strict=True) if r < n]
    return draw(st.sampled_from([Basis, Subspace]))(shape[1:], ranks, torch.cat([torch.zeros(0, dtype=torch.float64), *factors]))


@st.composite
def forms(draw: st.DrawFn, shape: tuple[int, ...]) -> Form | None:
    """A form for a tensor of this shape, with ranks up to beyond what it allows; None keeps it whole."""
    threshold = draw(st.sampled_from([0.3, 0.9, 1.0]))
    kind = draw(st.sampled_from(["whole", "svd", "hosvd", "coded", "basis", "quantised", "patch_mean", "bitmap"]))
    if kind == "whole":
        return None
    if kind == "hosvd":
        return Hosvd(tuple(draw(st.integers(1, size + 1)) for size in shape), threshold)
    if kind == "coded":
        return draw(coded(shape))
    if kind == "bitmap":
        return Bitmap(draw(st.floats(0, 1)), draw(st.floats(0, 1)), draw(st.sampled_from([None, 8, 4])))
    if kind == "basis":
        return draw(bases(shape))
    if kind == "quantised" or (kind == "patch_mean" and len(shape) < 3):
        return draw(st.sampled_from([Int8(), Int4(), Bfloat16()]))
    if kind == "patch_mean":
        return PatchMean(tuple(draw(st.integers(1, size + 1)) for size in shape[2:]))
    first = draw(st.integers(0, len(shape) - 1))
    return Svd((first, draw(st.integers(first + 1, len(shape)))), draw(st.integers(1, 9)), threshold)


def restored(form: Form | None, x: Tensor) -> Tensor:
    return x if form is None else form.restore(form.compress(x), x.shape, 0, x.shape[0])


def hold(form: Form | None, x: Tensor) -> HeldTensor | None:
    return None if form is None else Hold(form)(x)


def gradients(output: Tensor, wanted: list[Tensor | None], seed: int) -> list[Tensor]:
    return list(torch.autograd.grad(output, [w for w in wanted if w is not None], random(tuple(output.shape), seed)))


def dense(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvArguments) -> Tensor:
    """Torch's own convolution."""
    stride, padding, dilation, groups, output_padding = arguments
    if output_padding is None:
        return CONVOLUTIONS[len(stride)](x, weight, bias, stride, padding, dilation, groups)
    return TRANSPOSED[len(stride)](x, weight, bias, stride, padding, output_padding, groups, dilation)


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    axes, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    groups = draw(st.integers(1, 3))
    each = st.integers(1, 3)
    kernel = tuple(draw(each) for _ in range(axes))
    dilation = [draw(each) for _ in range(axes)]
    padding = [draw(st.integers(0, 3)) for _ in range(axes)]
    stride = [draw(each) for _ in range(axes)]
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    least = [-(-(1 - r) // s) + 1 if transposed else r for r, s in zip(reach, stride, strict=True)]  # one place of the result
    spatial = tuple(draw(st.integers(max(1, size), max(1, size) + 4)) for size in least)
    inner, outer = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    shape = (draw(st.integers(1, 4)), groups * inner, *spatial)
    further = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)] if transposed else None
    return {
        "x": shape,
        "weight": (groups * inner, outer, *kernel) if transposed else (groups * outer, inner, *kernel),
        "outputs": groups * outer,
        "arguments": ConvArguments(stride, padding, dilation, groups, further),
        "bias": draw(st.booleans()),
        "form": draw(forms(shape)),
        "seed": draw(st.integers(0, 9)),
    }


@given(case=convolutions())
@settings(deadline=None, max_examples=400)
def test_convolution(case: dict[str, Any]) -> None:
    seed, form, arguments = case["seed"], case["form"], case["arguments"]
    x, weight = random(case["x"], seed).requires_grad_(), random(case["weight"], seed + 1).requires_grad_()
    bias = random((case["outputs"],), seed + 2).requires_grad_() if case["bias"] else None

    ours = convolution(x, weight, bias, arguments, hold(form, x))
    truth = dense(x, weight, bias, arguments)
    of_restored = dense(restored(form, x.detach()), weight, None, arguments)

    assert relative_error(ours, truth) <= CLOSE
    our_x, our_weight, *our_bias = gradients(ours, [x, weight, bias], seed)
    x_grad, _, *bias_grad = gradients(truth, [x, weight, bias], seed)
    (weight_grad,) = gradients(of_restored, [weight], seed)
    assert relative_error(our_x, x_grad) <= CLOSE
    assert relative_error(our_weight, weight_grad) <= CLOSE
    assert all(relative_error(a, b) <= CLOSE for a, b in zip(our_bias, bias_grad, strict=True))


@given(data=st.data(), between=st.lists(st.integers(1, 3), max_size=3), bias=st.booleans(), columns=st.booleans(), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_linear_on_two_to_five_axes(data: st.DataObject, between: list[int], bias: bool, columns: bool, seed: int) -> None:
    shape = (data.draw(st.integers(1, 5)), *between, data.draw(st.integers(1, 6)))
    form = data.draw(forms(shape))
    x, weight = random(shape, seed).requires_grad_(), random((data.draw(st.integers(1, 4)), shape[-1]), seed + 1).requires_grad_()
    bias_O = random(tuple(weight.shape[:1]), seed + 2).requires_grad_() if bias else None

    as_kept = weight.detach().mT.contiguous().requires_grad_() if columns else weight
    ours = linear(x, as_kept, bias_O, hold(form, x), transposed=columns)
    truth = F.linear(x, weight, bias_O)

    assert relative_error(ours, truth) <= CLOSE
    our_x, our_weight, *our_bias = gradients(ours, [x, as_kept, bias_O], seed)
    assert our_weight.is_contiguous()
    our_weight = our_weight.mT if columns else our_weight
    x_grad, _, *bias_grad = gradients(truth, [x, weight, bias_O], seed)
    (weight_grad,) = gradients(F.linear(restored(form, x.detach()), weight), [weight], seed)
    assert relative_error(our_x, x_grad) <= CLOSE
    assert relative_error(our_weight, weight_grad) <= CLOSE
    assert all(relative_error(a, b) <= CLOSE for a, b in zip(our_bias, bias_grad, strict=True))


@given(data=st.data(), spatial=st.lists(st.integers(1, 4), max_size=3), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_frozen_batch_norm(data: st.DataObject, spatial: list[int], seed: int) -> None:
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5)), *spatial)
    form = data.draw(forms(shape))
    x = random(shape, seed).requires_grad_()
    weight, bias, mean = (random(shape[1:2], seed + n) for n in (1, 2, 3))
    weight.requires_grad_()
    bias.requires_grad_()
    variance = random(shape[1:2], seed + 4).square() + 0.1

    ours = frozen_batch_norm(x, weight, bias, mean, variance, 1e-5, hold(form, x))
    truth = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, 1e-5)
    of_restored = F.batch_norm(restored(form, x.detach()), mean, variance, weight, bias, False, 0.0, 1e-5)

    assert relative_error(ours, truth) <= CLOSE
    our_x, our_weight, our_bias = gradients(ours, [x, weight, bias], seed)
    x_grad, _, bias_grad = gradients(truth, [x, weight, bias], seed)
    (weight_grad,) = gradients(of_restored, [weight], seed)
    assert relative_error(our_x, x_grad) <= CLOSE
    assert relative_error(our_weight, weight_grad) <= CLOSE
    assert relative_error(our_bias, bias_grad) <= CLOSE


@given(case=convolutions().filter(lambda case: not case["arguments"].transposed), over=st.booleans())
@settings(deadline=None, max_examples=300)
def test_a_norm_folded_into_a_convolution(case: dict[str, Any], over: bool) -> None:
    seed, form, arguments, channels = case["seed"], case["form"], case["arguments"], (case["outputs"],)
    x, weight = random(case["x"], seed).requires_grad_(), random(case["weight"], seed + 1).requires_grad_()
    bias = random(channels, seed + 2).requires_grad_() if case["bias"] else None
    norm_weight, norm_bias, mean = (random(channels, seed + n) for n in (3, 4, 5))
    norm_weight[0] = 0.0  # as a block's last norm often starts
    norm_weight.requires_grad_()
    norm_bias.requires_grad_()
    variance = random(channels, seed + 6).square() + 0.1

    def whole(x: Tensor) -> Tensor:
        return F.batch_norm(dense(x, weight, bias, arguments), mean, variance, norm_weight, norm_bias, False, 0.0, 1e-5)

    norm = (norm_weight, norm_bias, mean, variance, 1e-5)
    result = convolution_before_norm(x, weight, bias, *norm, arguments, hold(form, x))
    parameters = {t.data_ptr() for t in (weight, bias, *norm[:4]) if t is not None}
    kept = {t.data_ptr(): t.untyped_storage().nbytes() for t in result.grad_fn.saved_tensors if t is not None}  # type: ignore[union-attr]
    assert sum(size for at, size in kept.items() if at not in parameters) == (
        x.nbytes
        if form is None
        else sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in hold(form, x).tensors}.values())  # type: ignore[union-attr]
    )
    ours = norm_after_convolution(result, *norm, over_input=over)
    assert relative_error(ours, whole(x)) <= CLOSE
    our_x, our_weight, our_norm, *our_biases = gradients(ours, [x, weight, norm_weight, norm_bias, bias], seed)
    x_grad, _, _, *bias_grads = gradients(whole(x), [x, weight, norm_weight, norm_bias, bias], seed)
    weight_grad, norm_grad = gradients(whole(restored(form, x.detach())), [weight, norm_weight], seed)
    for one, other in zip([our_x, our_weight, our_norm, *our_biases], [x_grad, weight_grad, norm_grad, *bias_grads], strict=True):
        assert relative_error(one, other) <= CLOSE


def saved_bytes(output: Tensor) -> int:
    """Bytes of the tensors that the operation which made `output` holds for its backward."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in output.grad_fn.saved_tensors if t is not None}
    return sum(storages.values())


def test_a_frozen_weight_needs_no_input_and_its_bias_still_trains() -> None:
    x, weight, bias = random((2, 3, 5, 5), 0).requires_grad_(), random((4, 3, 3, 3), 1), random((4,), 2).requires_grad_()
    ours = convolution(x, weight, bias, PADDED)
    truth = F.conv2d(x, weight, bias, padding=1)
    assert saved_bytes(ours) == weight.nbytes
    for a, b in zip(gradients(ours, [x, bias], 3), gradients(truth, [x, bias], 3), strict=True):
        assert relative_error(a, b) <= CLOSE


def test_the_first_layer_holds_only_its_form() -> None:
    x, weight = random((4, 3, 6, 6), 0), random((4, 3, 3, 3), 1).requires_grad_()
    form = Hosvd((4, 1, 2, 2), 1.0)
    ours = convolution(x, weight, None, PADDED, hold(form, x))
    assert saved_bytes(ours) == form.held_bytes(tuple(x.shape), 8)


def test_without_gradients_no_form_is_made() -> None:
    with torch.no_grad():
        assert Hold(Hosvd((1, 1, 1, 1), 1.0))(random((2, 2, 2, 2), 0)) is None


@pytest.mark.parametrize("channels", [(32, 16), (16, 16), (8, 16)])
def test_the_input_gradient_of_one_sample_takes_no_columns(channels: tuple[int, int]) -> None:
    """Torch's transposed convolution of few elements makes nine times as many."""
    inputs, outputs = channels
    x = torch.randn(1, inputs, 32, 32, requires_grad=True)
    weight, grad = torch.randn(outputs, inputs, 3, 3), torch.randn(1, outputs, 32, 32)
    gradients: list[Tensor] = []
    arguments = ConvArguments([1, 1], [1, 1], [1, 1])
    peak_bytes = record(lambda: gradients.append(input_gradient(grad, weight, x.shape, arguments))).peak_bytes
    torch.nn.functional.conv2d(x, weight, padding=1).backward(grad)
    torch.testing.assert_close(gradients[0], x.grad, rtol=1e-4, atol=1e-4)
    assert peak_bytes <= 4 * x.nbytes + grad.nbytes
