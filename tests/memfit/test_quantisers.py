"""Quantisers against numbers drawn from the density they are for, and against the best that any borders reach."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memfit.quantisers import bent, levels, quantisers, unbent

WIDTHS = [1, 2, 3, 4, 5, 6, 8]
DRAWS = 400_000
# What borders and levels found by iteration lose of the same density (Lloyd's method, 150 rounds from the middles).
LEAST = {1: 0.43375, 2: 0.15124, 3: 0.04843, 4: 0.01384, 5: 0.00370, 6: 0.00096}


def mixture() -> Tensor:
    torch.manual_seed(0)
    laplacian = torch.distributions.Laplace(0.0, 0.5**0.5).sample((DRAWS,)).double()
    return torch.where(torch.rand(DRAWS) < 0.5, torch.randn(DRAWS).double(), laplacian)


def codes_of(values: Tensor, width: int) -> Tensor:
    quantiser = quantisers(False)[width]
    return (bent(values / quantiser.step, quantiser.bend) + 2 ** (width - 1)).floor().clamp(0, 2**width - 1).long()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_quantiser_loses_what_it_says_and_its_levels_are_the_means_of_what_they_are_given(width: int) -> None:
    values = mixture()
    codes = codes_of(values, width)
    told = levels(width, False)
    assert float((values - told[codes]).square().mean()) == pytest.approx(quantisers(False)[width].loss, rel=0.05)
    counts = torch.bincount(codes, minlength=2**width)
    means = torch.bincount(codes, values, 2**width) / counts.clamp_min(1)
    often = counts > 2000
    torch.testing.assert_close(told[often], means[often], rtol=0.02, atol=0.01)


@pytest.mark.parametrize("width", LEAST)
def test_it_is_near_the_best_of_its_width(width: int) -> None:
    assert LEAST[width] * 0.999 <= quantisers(False)[width].loss <= 1.1 * LEAST[width]


@pytest.mark.parametrize("width", quantisers(True))
def test_codes_of_coefficients_rounded_at_random_stand_for_even_levels(width: int) -> None:
    step = quantisers(True)[width].step
    torch.testing.assert_close(levels(width, True).diff(), torch.full((2**width - 1,), step, dtype=torch.float64))
    assert float(levels(width, True)[2 ** (width - 1)]) == 0
    gaussian = torch.randn(DRAWS, generator=torch.Generator().manual_seed(0)).double()
    middles = levels(width, True) + step / 2  # as the loss is told: of rounding to the nearest
    codes = (gaussian / step + 2 ** (width - 1)).floor().clamp(0, 2**width - 1).long()
    lost = float((gaussian - middles[codes]).square().mean())
    assert lost * 0.5 <= quantisers(True)[width].loss and (lost <= quantisers(True)[width].loss or width == 16)


@pytest.mark.parametrize("width", quantisers(False))
def test_levels_grow_and_lie_on_both_sides_alike(width: int) -> None:
    told = levels(width, False)
    assert bool((told.diff() > 0).all())
    torch.testing.assert_close(told, -told.flip(0))
    quantiser = quantisers(False)[width]
    borders = unbent(torch.arange(2 ** (width - 1), dtype=torch.float64), quantiser)
    assert bool((borders <= told[2 ** (width - 1) :]).all() and (told[2 ** (width - 1) : -1] <= borders[1:]).all())


@given(value=st.floats(-1e6, 1e6), width=st.sampled_from([2, 4, 8, 12]))
def test_what_is_bent_is_unbent(value: float, width: int) -> None:
    quantiser = quantisers(False)[width]
    steps = bent(torch.tensor([value], dtype=torch.float64), quantiser.bend)
    torch.testing.assert_close(unbent(steps, quantiser), torch.tensor([value * quantiser.step], dtype=torch.float64), rtol=1e-6, atol=1e-9)
