"""One bit an element says whether it is above zero; those that are stand one after the other, exact or in few bits.

What is held is max(x, 0). Of a rectifier's input that is its result, and the bits are where its gradient passes.

There is room for as many elements above zero as a profile has seen, and some more. A batch that has more of them than that holds each
of them in as many bits as there is room for; at the very worst in none, and all of a sample restore to their mean. The bits that say where
stay right whatever comes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, prod, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from memfit.bits import packed_bytes
from memfit.compaction import compact, count_set, expand, pack_above_zero, workspace_bytes
from memfit.forms.form import Held
from memfit.forms.quantised import GROUP, dequantised, groups_of, quantise, work_type
from memfit.packing import packed_row_bytes
from memfit.tucker import Decompose, decompose_mode

PIECE = 1 << 15  # elements coded at once; a multiple of those of a group
FEWER_BITS = (8, 4, 2, 0)  # one bit, between the least and the largest, is further off than the mean


@dataclass(frozen=True, slots=True)
class Bitmap:
    """Where elements are above zero, and those.

    Attributes:
        share, spread: of n samples of c elements there is room for c (n · share + √n · spread) above zero: a mean, and what a sample may be
            beyond it, of which many samples have less each.
        bits: of each of them, in groups of a sample as in `Int8` and `Int4`; None: exact.
    """

    technique: ClassVar[str] = "bitmap"
    share: float
    spread: float
    bits: int | None = None

    def compress(self, x: Tensor, decompose: Decompose = decompose_mode) -> Held:
        samples, count = x.shape[0], prod(x.shape[1:])
        packed = pack_above_zero(x)
        counts_B = count_set(packed, samples, count)
        payload = torch.empty(self._payload_bytes(samples, count, x.element_size()), dtype=torch.uint8, device=x.device)
        layout = self._layout(counts_B, x.dtype, payload)
        rows = x.detach().contiguous().view(samples, count)
        if layout.bits is None:
            compact(rows, packed, 0, layout.counts, layout.exact(0, samples))
            return packed, payload, counts_B, x.new_empty(0)  # which tells the type to restore
        for sample, above in enumerate(layout.counts):
            values = x.new_empty(above)
            compact(rows[sample : sample + 1], packed, sample * count, [above], values)
            if not layout.bits:
                layout.means[sample] = sum(piece.double().sum() for piece in values.split(PIECE)) / above
            for piece, codes, least, step in layout.coded(sample) if layout.bits else ():
                quantise(values[None, piece].to(layout.work), layout.bits, False, codes, least, step)
        return packed, payload, counts_B, x.new_empty(0)

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int) -> Tensor:
        packed, payload, counts_B, like = held
        count = prod(shape[1:])
        layout = self._layout(counts_B, like.dtype, payload)
        rows = torch.empty(stop - start, count, dtype=like.dtype, device=packed.device)
        if layout.bits is None:
            expand(layout.exact(start, stop), packed, start * count, layout.counts[start:stop], rows)
            return rows.view(stop - start, *shape[1:])
        for row, sample in enumerate(range(start, stop)):
            above = layout.counts[sample]
            values = rows[row, count - above :]  # they stand where the last of them will
            if not layout.bits:
                values.copy_(layout.means[sample].expand(above))
            for piece, codes, least, step in layout.coded(sample) if layout.bits else ():
                values[piece] = dequantised(codes, layout.bits, values[piece].numel(), least, step)[0]
            expand(values, packed, sample * count, [above], rows[row : row + 1])
        return rows.view(stop - start, *shape[1:])

    def held_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        return packed_bytes(prod(shape)) + self._payload_bytes(shape[0], prod(shape[1:]), itemsize) + 8 * shape[0]

    def compress_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Also of a batch for whose exact elements there is no room: those of a sample, while they are coded."""
        work = workspace_bytes(prod(shape), itemsize) + itemsize * prod(shape[1:]) + self._coding_bytes(shape, itemsize)
        return self.held_bytes(shape, itemsize) + work

    def restore_bytes(self, shape: tuple[int, ...], itemsize: int, samples: int) -> int:
        elements = samples * prod(shape[1:])
        return itemsize * elements + max(workspace_bytes(elements, itemsize), self._coding_bytes(shape, itemsize))

    def most_above(self, samples: int, count: int) -> int:
        """Elements above zero that there is room for, of samples of `count` elements."""
        return min(samples * count, ceil(count * (samples * self.share + sqrt(samples) * self.spread)))

    def _coding_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Of a piece of a sample's elements while it is coded, or restored from its codes."""
        return 4 * max(4, itemsize) * min(PIECE, prod(shape[1:]) + GROUP)

    def _payload_bytes(self, samples: int, count: int, itemsize: int) -> int:
        above, work_bytes = self.most_above(samples, count), max(4, itemsize)
        if self.bits is None:
            return max(itemsize * above, work_bytes * samples)
        groups = (above + (GROUP - 1) * samples) // GROUP  # each sample's last one may be of one element
        return max(2 * work_bytes * groups + (above * self.bits + 7 * samples) // 8, work_bytes * samples)

    def _layout(self, counts_B: Tensor, dtype: torch.dtype, payload: Tensor) -> "_Layout":
        """The first of the widths that there is room for, from the form's own on."""
        counts = counts_B.tolist()
        widths = (None, *FEWER_BITS) if self.bits is None else (bits for bits in FEWER_BITS if bits <= self.bits)
        return next(layout for bits in widths if (layout := _Layout(bits, counts, dtype, payload)).bytes <= payload.numel())


class _Layout:
    """Where the elements above zero of each sample stand: exact ones one after the other; or least values and steps of
    its groups, sample after sample, then the codes, each sample's in bytes of its own; or a mean for each.

    Attributes:
        bits: of each element; None: exact; 0: there is a mean alone.
        counts: elements of each sample.
        bytes: of all.
    """

    def __init__(self, bits: int | None, counts: list[int], dtype: torch.dtype, payload: Tensor) -> None:
        self.bits, self.counts, self.dtype, self.payload, self.work = bits, counts, dtype, payload, work_type(dtype)
        if bits is None:
            tables, sizes = [0] * len(counts), [dtype.itemsize * count for count in counts]
        elif bits:
            tables, sizes = [2 * groups_of(count) for count in counts], [packed_row_bytes(count, bits) for count in counts]
        else:
            tables, sizes = [1] * len(counts), [0] * len(counts)
        self._tables = list(accumulate(tables, initial=0))
        self._places = list(accumulate(sizes, initial=self.work.itemsize * self._tables[-1]))
        self.bytes = self._places[-1]

    def exact(self, start: int, stop: int) -> Tensor:
        """The elements of samples start..stop-1. Shape (elements,)."""
        return self.payload[self._places[start] : self._places[stop]].view(self.dtype)

    @property
    def means(self) -> Tensor:
        """Of each sample. Shape (samples,)."""
        return self.payload[: self._places[0]].view(self.work)

    def coded(self, sample: int) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Some of a sample's elements after the others: which, and their codes, least values and steps, as a row each."""
        assert self.bits
        table = self.payload[: self._places[0]].view(self.work)[self._tables[sample] : self._tables[sample + 1]]
        least, step = table.view(2, 1, -1)
        codes = self.payload[None, self._places[sample] : self._places[sample + 1]]
        for start in range(0, self.counts[sample], PIECE):
            bytes_, groups = (slice(start // each, (start + PIECE) // each) for each in (8 // self.bits, GROUP))
            yield slice(start, start + PIECE), codes[:, bytes_], least[:, groups], step[:, groups]
