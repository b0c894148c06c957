"""Numbers of few bits: what is unpacked is what was packed, in the bytes told."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from memfit.packing import pack_rows, packed_row_bytes, unpack_rows


@given(rows=st.integers(1, 4), count=st.integers(0, 40), bits=st.integers(1, 16), seed=st.integers(0, 9))
def test_unpacking_gives_what_was_packed(rows: int, count: int, bits: int, seed: int) -> None:
    numbers = torch.randint(0, 2**bits, (rows, count), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    values = numbers.to(torch.uint8) if bits <= 8 else numbers
    packed = torch.full((rows, packed_row_bytes(count, bits)), 255, dtype=torch.uint8)
    pack_rows(values, bits, packed)
    torch.testing.assert_close(unpack_rows(packed, bits, count), values)
    for row in range(rows):  # rows stand by themselves
        torch.testing.assert_close(unpack_rows(packed[row : row + 1], bits, count), values[row : row + 1])


@given(count=st.integers(0, 1000), bits=st.integers(1, 16))
def test_bytes_are_those_of_the_bits_and_less_than_one_more_a_plane(count: int, bits: int) -> None:
    planes = (bits // 8) + (bits % 8).bit_count()
    assert count * bits <= 8 * packed_row_bytes(count, bits) < count * bits + 8 * max(1, planes)
