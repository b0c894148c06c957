"""Held forms: bytes, errors and the awkward tensors, for every technique that holds tensors."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfit.forms import Coded, Form, Hosvd, Svd, form_from_settings
from memfit.tucker import decompose_mode, rank_for_threshold
from tests.memfit.test_operators import forms, random

shapes = st.lists(st.integers(1, 7), min_size=2, max_size=5).map(tuple)


def restored(form: Form, x: Tensor) -> Tensor:
    return form.restore(form.compress(x), x.shape, 0, x.shape[0])


@given(
    data=st.data(),
    shape=shapes,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=200)
def test_bytes_from_shapes_are_the_bytes_of_the_storages(
    data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    form = data.draw(forms(shape).filter(lambda form: form is not None))
    x = random(shape, seed).to(dtype)
    held = form.compress(x)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in held)
    assert kept == sum(tensor.nbytes for tensor in held), "a view of something larger"
    assert all(tensor.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() for tensor in held)
    assert kept <= form.held_bytes(shape, x.element_size())
    if not isinstance(form, (Svd, Hosvd, Coded)):
        assert kept == form.held_bytes(shape, x.element_size())
    full = max(1, prod(shape))
    if isinstance(form, Svd) and form.threshold == 1.0 and dtype == torch.float64 and full > 1:
        assert kept == form.held_bytes(shape, 8), "random tensors have full rank, so the cap is met"


@given(data=st.data(), shape=shapes, seed=st.integers(0, 9), cut=st.integers(0, 7))
@settings(deadline=None, max_examples=100)
def test_ranges_of_samples_are_the_samples_of_the_whole(data: st.DataObject, shape: tuple[int, ...], seed: int, cut: int) -> None:
    form = data.draw(forms(shape).filter(lambda form: form is not None))
    x = random(shape, seed)
    held = form.compress(x)
    cut = min(cut, shape[0])
    parts = [form.restore(held, x.shape, a, b) for a, b in ((0, cut), (cut, shape[0])) if b > a]
    torch.testing.assert_close(torch.cat(parts), form.restore(held, x.shape, 0, shape[0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_a_few_elements_that_are_not_zero_have_directions(samples: int) -> None:
    """LAPACK fails of some of them: of the smaller Gram matrix of up to three samples, and of the channels' of four."""
    decay = 0.9 ** torch.arange(64).float().view(1, 64, 1)
    for seed in range(400):
        noise = torch.randn(samples, 64, 16, generator=torch.Generator().manual_seed(seed)) * decay
        x = torch.where(noise > 1.5, noise, 0.0)
        energies, factor = decompose_mode(x, 1, 2)
        assert bool(energies.isfinite().all())
        projected = torch.einsum("nk,mk,lmr->lnr", factor, factor, x.to(factor.dtype)).float()
        torch.testing.assert_close(projected, x, atol=1e-4, rtol=1e-4)


@given(shape=shapes, seed=st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_full_rank_is_exact(shape: tuple[int, ...], seed: int) -> None:
    x = random(shape, seed)
    for form in (Hosvd(shape, 1.0), Hosvd(tuple(size + 3 for size in shape), 1.0), *(Svd((m, m + 1), 99, 1.0) for m in range(len(shape)))):
        torch.testing.assert_close(restored(form, x), x, rtol=1e-9, atol=1e-9)


@given(shape=shapes, seed=st.integers(0, 9), threshold=st.floats(0.05, 0.999))
@settings(deadline=None, max_examples=100)
def test_svd_keeps_its_threshold_and_loses_what_eckart_and_young_say(shape: tuple[int, ...], seed: int, threshold: float) -> None:
    x = random(shape, seed)
    for mode in range(len(shape)):
        truth = torch.linalg.svdvals(x.movedim(mode, 0).reshape(shape[mode], -1)).square()
        rank = rank_for_threshold(truth, threshold)
        error = float((x - restored(Svd((mode, mode + 1), 99, threshold), x)).square().sum())
        assert error == pytest.approx(float(truth[rank:].sum()), rel=1e-6, abs=1e-9)
        assert error <= (1 - threshold) * float(truth.sum()) + 1e-9


@given(shape=shapes, seed=st.integers(0, 9), threshold=st.floats(0.3, 0.999))
@settings(deadline=None, max_examples=100)
def test_hosvd_loses_at_most_one_minus_threshold_a_mode(shape: tuple[int, ...], seed: int, threshold: float) -> None:
    x = random(shape, seed)
    # A rank below the size lets every mode be truncated; sizes of 1 cannot be.
    form = Hosvd(tuple(max(1, size - 1) for size in shape), threshold)
    truncated = sum(rank < size for rank, size in zip(form.ranks, shape, strict=True))
    held = form.compress(x)
    by_threshold = all(
        factor.shape[1] < rank for factor, rank in zip(held[1:], (r for r, s in zip(form.ranks, shape, strict=True) if r < s), strict=True)
    )
    if by_threshold:  # no cap was reached, so the threshold alone decided
        assert float((x - restored(form, x)).square().sum()) <= truncated * (1 - threshold) * float(x.square().sum()) + 1e-9


@pytest.mark.parametrize("form", [Hosvd((2, 2, 2, 2), 0.9), Hosvd((4, 3, 5, 5), 1.0), Svd((1, 2), 2, 0.9), Svd((0, 2), 9, 1.0)])
@pytest.mark.parametrize("x", [torch.zeros(4, 3, 5, 5), torch.ones(4, 3, 5, 5), torch.full((4, 3, 5, 5), 1e-30)])
def test_constant_tensors_stay_finite_and_small(form: Form, x: Tensor) -> None:
    held = form.compress(x)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in held)
    torch.testing.assert_close(form.restore(held, x.shape, 0, 4), x, rtol=1e-4, atol=1e-6)
    assert sum(tensor.nbytes for tensor in held) <= form.held_bytes((4, 3, 5, 5), 4)


def test_a_smaller_last_batch_is_held_by_the_same_form() -> None:
    form = Hosvd((8, 2, 3, 3), 1.0)
    for batch in (8, 3, 1):
        x = random((batch, 4, 6, 6), batch)
        assert restored(form, x).shape == x.shape
        assert sum(t.nbytes for t in form.compress(x)) == form.held_bytes((batch, 4, 6, 6), 8)


def test_strided_tensors_are_held_by_their_values() -> None:
    x = random((4, 6, 5, 3), 0)
    for view in (x.permute(0, 3, 1, 2), x.to(memory_format=torch.channels_last), x[:, ::2], x[:1].expand(4, -1, -1, -1)):
        torch.testing.assert_close(restored(Hosvd((2, 2, 2, 2), 0.9), view), restored(Hosvd((2, 2, 2, 2), 0.9), view.clone().contiguous()))


@given(shape=shapes, mode=st.integers(0, 4), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_a_mode_is_decomposed_as_the_dense_svd_does(shape: tuple[int, ...], mode: int, seed: int) -> None:
    mode %= len(shape)
    x = random(shape, seed)
    energies, factor = decompose_mode(x, mode, mode + 1)
    truth = torch.linalg.svdvals(x.movedim(mode, 0).reshape(shape[mode], -1)).square()
    torch.testing.assert_close(energies, truth, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(factor.mT @ factor, torch.eye(factor.shape[1], dtype=torch.float64), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("threshold", "rank"), [(0.4, 1), (0.5, 1), (0.51, 2), (1.0, 3)])
def test_rank_for_threshold(threshold: float, rank: int) -> None:
    assert rank_for_threshold(torch.tensor([2.0, 1.0, 1.0, 0.0]), threshold) == rank


def test_rank_for_threshold_of_nothing_is_one_and_of_nonsense_an_error() -> None:
    assert rank_for_threshold(torch.zeros(5), 0.9) == 1
    for threshold in (0.0, -1.0, 1.1):
        with pytest.raises(ValueError, match="threshold must be in"):
            rank_for_threshold(torch.ones(2), threshold)


def test_an_unknown_technique_is_refused() -> None:
    with pytest.raises(ValueError, match="older than the checkpoint"):
        form_from_settings("wavelet", {})
    with pytest.raises(ValueError, match="unexpected keyword"):
        form_from_settings("svd", {"modes": [0, 1], "rank": 2, "threshold": 0.9, "colour": "red"})


@pytest.mark.parametrize("form", [Hosvd((2, 2, 2, 2), 0.9), Svd((1, 2), 2, 0.9), Svd((0, 2), 9, 1.0)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_restored_as_nan_and_not_hidden(form: Form, value: float) -> None:
    x = torch.ones(4, 3, 5, 5)
    x[1, 2, 3, 4] = value
    held = form.compress(x)
    assert bool(form.restore(held, x.shape, 0, 4).isnan().all())
    assert sum(tensor.nbytes for tensor in held) <= form.held_bytes((4, 3, 5, 5), 4)
