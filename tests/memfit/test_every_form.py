"""Every technique of the menu: its bytes for every size of a batch, and ten thousand awkward tensors."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfit.forms import FORMS, Coded, Form, Hosvd, Svd
from planner.spectra import Spectra
from planner.techniques import candidates

SHAPES = [((50, 12, 8, 8), 1), ((50, 16, 24), 2), ((50, 64, 4, 4), 1)]
LARGEST = {
    torch.float32: 1e18,
    torch.float64: 1e18,
    torch.bfloat16: 1e18,
    torch.float16: 1e3,
}  # a core of float16 is to stay in its range, too


def tensor_of(shape: tuple[int, ...], seed: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for mode in range(1, len(shape)):
        x = x * (0.9 ** torch.arange(shape[mode]).float()).view([-1 if m == mode else 1 for m in range(len(shape))])
    return x


@cache
def menu(shape: tuple[int, ...], feature: int) -> tuple[Form, ...]:
    spectra = Spectra.of_shape(shape, 4, feature, (0.0,) if len(shape) == 4 else (), 100.0)
    spectra.add(tensor_of(shape, 0))
    forms = [candidate.form for candidate in candidates(spectra)]
    return (*forms, *(replace(form, deviations=None) for form in forms if isinstance(form, Coded)))


def test_every_technique_is_on_some_menu() -> None:
    assert {form.technique for shape in SHAPES for form in menu(*shape)} == set(FORMS)


@pytest.mark.parametrize(("shape", "feature"), SHAPES)
def test_bytes_are_those_of_the_storages_for_every_batch_of_up_to_fifty(shape: tuple[int, ...], feature: int) -> None:
    """Equal where they do not depend on the data. At most, of a table or directions worked out from the batch: few samples have few."""
    x = tensor_of(shape, 1)
    for form in menu(shape, feature):
        depends = getattr(form, "threshold", 1.0) < 1 or (isinstance(form, Coded) and form.deviations is None)
        for samples in range(1, 51):
            held = form.compress(x[:samples])
            stored = sum(tensor.untyped_storage().nbytes() for tensor in held)
            told = form.held_bytes((samples, *shape[1:]), 4)
            few = isinstance(form, (Svd, Hosvd)) and samples < 50
            assert stored <= told and (depends or few or stored == told), (form.technique, samples, stored, told)


@pytest.mark.slow
@given(data=st.data())
@settings(deadline=None, max_examples=10_000, suppress_health_check=list(HealthCheck))
def test_ten_thousand_finite_tensors_restore_to_finite_ones(data: st.DataObject) -> None:
    """All zero, constant, one sample, of one direction, of any size that their type has, with a few huge values."""
    shape, feature = data.draw(st.sampled_from(SHAPES))
    form = data.draw(st.sampled_from(menu(shape, feature)))
    dtype = data.draw(st.sampled_from(list(LARGEST)))
    samples = data.draw(st.integers(1, 4))
    kind = data.draw(st.sampled_from(["noise", "zero", "constant", "sparse", "one direction", "huge values", "a zero sample"]))
    size = 10.0 ** data.draw(st.integers(-30, 18))
    x = tensor_of((samples, *shape[1:]), data.draw(st.integers(0, 99))).double()
    if kind in ("zero", "constant"):
        x = torch.full_like(x, float(kind == "constant"))
    elif kind == "sparse":
        x = torch.where(x > 1, x, 0.0)
    elif kind == "one direction":
        x = x[:, :1, :1].expand_as(x).contiguous()
    elif kind == "huge values":
        x.view(-1)[:: max(1, x.numel() // 3)] *= 1e6
    elif kind == "a zero sample":
        x[0] = 0
    x = (x * size).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)
    restored = form.restore(form.compress(x), x.shape, 0, samples)
    assert restored.shape == x.shape and restored.dtype == x.dtype
    assert bool(restored.isfinite().all()), (form.technique, kind, dtype, size)
