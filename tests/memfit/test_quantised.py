"""Few bits an element: nearest within half a step, on average right when dithered, awkward values told as they are."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfit.forms import Bfloat16, Form, Int4, Int8
from memfit.forms.quantised import GROUP
from tests.memfit.test_operators import random


def restored(form: Form, x: Tensor) -> Tensor:
    return form.restore(form.compress(x), x.shape, 0, x.shape[0])


@given(samples=st.integers(1, 3), count=st.integers(1, 600), seed=st.integers(0, 9), kind=st.sampled_from([Int8, Int4]))
@settings(deadline=None, max_examples=60)
def test_an_element_is_restored_to_half_a_step_of_its_group(samples: int, count: int, seed: int, kind: Any) -> None:
    x = random((samples, count), seed)
    error = (restored(kind(), x) - x).abs()
    for sample in range(samples):
        for start in range(0, count, GROUP):
            group = x[sample, start : start + GROUP]
            half = float(group.max() - group.min()) / (2**kind.bits - 1) / 2
            assert float(error[sample, start : start + GROUP].max()) <= half * (1 + 1e-9)


@pytest.mark.parametrize("kind", [Int8, Int4])
def test_dithered_elements_are_right_on_average(kind: Any) -> None:
    torch.manual_seed(0)
    x, draws = random((2, 3, 200), 0), 300
    each = torch.stack([restored(kind(dither=True), x) for _ in range(draws)])
    variance = float((each[0] - x).square().mean())
    assert float((each.mean(0) - x).square().mean()) <= 1.5 * variance / draws
    nearest = float((restored(kind(), x) - x).square().mean())
    assert nearest < variance < 3 * nearest


@pytest.mark.parametrize("form", [Int8(), Int4(), Int8(dither=True), Bfloat16()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-4, 1.0, 6e4, 1e38])
def test_finite_elements_stay_finite_and_near(form: Form, dtype: torch.dtype, scale: float) -> None:
    x = (random((2, 400), 0).clamp(-1, 1) * scale).to(dtype)
    if bool(x.isfinite().all()):
        again = restored(form, x)
        assert again.dtype == dtype and bool(again.isfinite().all())
        span = 2 * float(x.double().abs().max()) + 1e-4 * (dtype == torch.float16) + 2e-35
        assert float((again.double() - x.double()).abs().max()) <= span / (12 if isinstance(form, Int4) else 90)


@pytest.mark.parametrize("form", [Int8(), Int4(), Bfloat16()])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(form: Form, value: float) -> None:
    x = random((3, 300), 0).float()
    x[1, 7] = value
    again = restored(form, x)
    assert not bool(again[1, 7].isfinite()) and bool(again[[0, 2]].isfinite().all())


def test_constant_groups_are_exact() -> None:
    x = torch.full((2, 300), 0.3)
    torch.testing.assert_close(restored(Int4(), x), x, rtol=0, atol=0)
