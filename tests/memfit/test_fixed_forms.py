"""Fixed directions and patch means against the dense projections that they are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.allocator import step_peak_bytes
from memfit.forms import Basis, PatchMean, Subspace
from memfit.forms.form import Form
from tests.memfit.test_operators import bases, random

shapes = st.lists(st.integers(1, 6), min_size=2, max_size=5).map(tuple)


def restored(form: Form, x: Tensor) -> Tensor:
    return form.restore(form.compress(x), x.shape, 0, x.shape[0])


@given(data=st.data(), shape=shapes, seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_a_basis_projects_every_mode(data: st.DataObject, shape: tuple[int, ...], seed: int) -> None:
    form = data.draw(bases(shape))
    x = random(shape, seed)
    factors = form.compress(x)[1] if isinstance(form, Subspace) else form.factors  # which follow the data
    truth, at = x, 0
    for mode, (size, rank) in enumerate(zip(form.sizes, form.ranks, strict=True), start=1):
        if rank < size:
            factor = factors[at : at + size * rank].view(size, rank)
            at += size * rank
            truth = (truth.movedim(mode, -1) @ factor @ factor.mT).movedim(-1, mode)
    torch.testing.assert_close(restored(form, x), truth)


@given(spatial=st.lists(st.integers(1, 7), min_size=1, max_size=3), data=st.data(), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_a_patch_is_its_mean(spatial: list[int], data: st.DataObject, seed: int) -> None:
    patch = tuple(data.draw(st.integers(1, size + 1)) for size in spatial)
    x = random((2, 3, *spatial), seed)
    again = restored(PatchMean(patch), x)
    for place in torch.cartesian_prod(*(torch.arange(size) for size in spatial)).view(-1, len(spatial)).tolist():
        own = tuple(slice(i // p * p, i // p * p + p) for i, p in zip(place, patch, strict=True))
        truth = x[(slice(None), slice(None), *own)].flatten(2).mean(2)
        torch.testing.assert_close(again[(slice(None), slice(None), *place)], truth)


@pytest.mark.parametrize("form", [PatchMean((2, 3)), Basis((4, 5, 6), (1, 1, 2), torch.zeros(21))])
def test_workspace_is_what_is_told(form: Form) -> None:
    x = random((64, 4, 5, 6), 0).float()
    held = form.compress(x)
    assert step_peak_bytes(lambda: form.compress(x)) <= form.compress_bytes(tuple(x.shape), 4)
    assert step_peak_bytes(lambda: form.restore(held, x.shape, 0, 64)) <= form.restore_bytes(tuple(x.shape), 4, 64)
