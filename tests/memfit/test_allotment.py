"""Bits against every allotment there is, and against the laws of water-filling."""

from itertools import product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.allotment import CODES, allot, code_deviations, deviations_of_codes, lost_share
from memfit.packing import packed_row_bytes
from memfit.quantisers import quantisers

codes = st.lists(st.integers(1, CODES - 1), min_size=1, max_size=4)


def counts_of(chosen: list[int]) -> tuple[int, ...]:
    return tuple(torch.bincount(torch.tensor(chosen), minlength=CODES).tolist())


def packed(widths: list[int], blocks: int) -> int:
    return sum(packed_row_bytes(widths.count(width) * blocks, width) for width in quantisers(False))


@given(chosen=codes, blocks=st.sampled_from([8, 64]), share=st.floats(0.0, 1.2), dither=st.booleans())
@settings(deadline=None, max_examples=50)
def test_no_allotment_of_as_many_bytes_loses_less(chosen: list[int], blocks: int, share: float, dither: bool) -> None:
    known = quantisers(dither)
    counts = counts_of(chosen)
    sample_bytes = int(share * 2 * len(chosen) * blocks)
    widths = allot(counts, blocks, sample_bytes, dither)
    ours = [widths[code] for code in chosen]
    assert packed(ours, blocks) <= sample_bytes
    energies = [2.0 ** ((code - 255) / 4) for code in chosen]
    for other in product([0, *known], repeat=len(chosen)):
        if packed(list(other), blocks) <= packed(ours, blocks):
            lost = sum(energy * (known[width].loss if width else 1) for energy, width in zip(energies, other, strict=True))
            assert lost_share(counts, widths, dither) * sum(energies) <= lost * (1 + 1e-9)


@given(chosen=codes, blocks=st.integers(1, 20))
@settings(deadline=None, max_examples=50)
def test_more_bytes_never_lose_more_and_more_variance_never_gets_less(chosen: list[int], blocks: int) -> None:
    counts = counts_of(chosen)
    losses = []
    for sample_bytes in range(0, 2 * len(chosen) * blocks + 2, max(1, len(chosen) * blocks // 7)):
        widths = allot(counts, blocks, sample_bytes, False)
        assert list(widths) == sorted(widths) and widths[0] == 0
        losses.append(lost_share(counts, widths, False))
    assert losses == sorted(losses, reverse=True)


def test_a_deviation_is_told_to_a_twentieth() -> None:
    deviations = torch.logspace(-8, 1, 400, dtype=torch.float64)
    told, largest = code_deviations(deviations)
    again = deviations_of_codes(largest, deviations)[told.int()]
    torch.testing.assert_close(again, deviations, rtol=0.045, atol=0.0)
    told, largest = code_deviations(torch.zeros(3))
    assert largest == 0.0 and not told.any()
