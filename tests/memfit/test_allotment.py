"""Bits against every allotment there is, and against the laws of water-filling."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.allotment import CODES, QUANTISERS, allot, code_deviations, deviations_of_codes, lost_share
from memfit.packing import packed_row_bytes

codes = st.lists(st.integers(1, CODES - 1), min_size=1, max_size=4)


def counts_of(chosen: list[int]) -> tuple[int, ...]:
    return tuple(torch.bincount(torch.tensor(chosen), minlength=CODES).tolist())


def packed(widths: list[int], blocks: int) -> int:
    return sum(packed_row_bytes(widths.count(width) * blocks, width) for width in QUANTISERS)


@given(chosen=codes, blocks=st.sampled_from([8, 64]), share=st.floats(0.0, 1.2))
@settings(deadline=None, max_examples=50)
def test_no_allotment_of_as_many_bytes_loses_less(chosen: list[int], blocks: int, share: float) -> None:
    counts = counts_of(chosen)
    sample_bytes = int(share * 2 * len(chosen) * blocks)
    widths = allot(counts, blocks, sample_bytes)
    ours = [widths[code] for code in chosen]
    assert packed(ours, blocks) <= sample_bytes
    energies = [2.0 ** ((code - 255) / 4) for code in chosen]
    for other in product([0, *QUANTISERS], repeat=len(chosen)):
        if packed(list(other), blocks) <= packed(ours, blocks):
            lost = sum(energy * (QUANTISERS[width][1] if width else 1) for energy, width in zip(energies, other, strict=True))
            assert lost_share(counts, widths) * sum(energies) <= lost * (1 + 1e-9)


@given(chosen=codes, blocks=st.integers(1, 20))
@settings(deadline=None, max_examples=50)
def test_more_bytes_never_lose_more_and_more_variance_never_gets_less(chosen: list[int], blocks: int) -> None:
    counts = counts_of(chosen)
    losses = []
    for sample_bytes in range(0, 2 * len(chosen) * blocks + 2, max(1, len(chosen) * blocks // 7)):
        widths = allot(counts, blocks, sample_bytes)
        assert list(widths) == sorted(widths) and widths[0] == 0
        losses.append(lost_share(counts, widths))
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("width", QUANTISERS)
def test_a_quantiser_loses_what_the_table_says(width: int) -> None:
    """On a mixture of a Gaussian and a Laplacian, between whose tails those of activations lie."""
    torch.manual_seed(0)
    step, loss = QUANTISERS[width]
    gaussian, laplacian = torch.randn(200_000).double(), torch.distributions.Laplace(0.0, 0.5**0.5).sample((200_000,)).double()
    errors = []
    for values in (gaussian, laplacian):
        level = (values / step + 2.0 ** (width - 1)).floor().clamp(0, 2**width - 1) - 2.0 ** (width - 1) + 0.5
        errors.append(float((values - level * step).square().mean()))
    assert errors[0] * 0.5 <= loss <= max(errors) * 1.5 or width == 16


def test_a_deviation_is_told_to_a_twentieth() -> None:
    deviations = torch.logspace(-8, 1, 400, dtype=torch.float64)
    told, largest = code_deviations(deviations)
    again = deviations_of_codes(largest, deviations)[told.int()]
    torch.testing.assert_close(again, deviations, rtol=0.045, atol=0.0)
    told, largest = code_deviations(torch.zeros(3))
    assert largest == 0.0 and not told.any()
