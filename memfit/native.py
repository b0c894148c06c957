"""The C way of `memfit.forms.coded`, `memfit.bits`, `memfit.compaction` and `memfit.operators.norm`, for float32 on a CPU, where installing
found a compiler.

It codes without copies of the coefficients and within one sample, several times as fast; what it holds and restores is what the torch
operations would, but for rounding. `python -m memfit.native` tells whether it is there; MEMFIT_NATIVE=0 in the environment leaves it out.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from memfit.positions import Positions
from memfit.quantisers import MOST_MEANS, levels, quantisers
from memfit.threads import LEAST_PIECE, at_once, by_pieces, threads
from memfit.transform import BlockTransform, cosines

RUN = 512  # MEMFIT_RUN of coded.c


class _Plan(ctypes.Structure):
    """`Plan` of coded.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("planes", "height", "width", "block_height", "block_width")),
        *((name, ctypes.c_void_p) for name in ("cosines_height", "cosines_width", "means", "widths", "deviations", "places")),
        ("groups", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("group_widths", "group_counts", "group_places")),
        *((name, ctypes.c_int64) for name in ("row_bytes", "code_bytes")),
        *((name, ctypes.c_void_p) for name in ("steps", "bends", "levels", "level_places")),
        *((name, ctypes.c_float) for name in ("shift", "low", "high")),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The built code; None where there is none."""
    found = find_spec("memfit._coded") if os.environ.get("MEMFIT_NATIVE") != "0" else None
    if found is None or found.origin is None:
        return None
    loaded = ctypes.CDLL(found.origin)
    pointer, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    takes = {
        "encode": (pointer, pointer, integer, *[pointer] * 4),
        "decode": (pointer, pointer, pointer, integer, *[pointer] * 3),
        "unpack": (pointer, pointer, pointer),
        "decode_planes": (pointer, pointer, number, integer, integer, pointer, pointer),
        "rectify": (pointer, integer, number, number, number, pointer, pointer),
        "scale": (pointer, pointer, integer, number, number, pointer),
        "above_zero": (pointer, integer, pointer),
        "count": (pointer, integer, integer),
        "compact": (pointer, pointer, integer, integer, pointer, integer),
        "expand": (pointer, pointer, integer, integer, pointer, integer),
        "affine_gradients": (*[pointer] * 4, *[integer] * 5, pointer, pointer),
        "depthwise": (*[pointer] * 4, integer, integer, pointer, pointer),
        "depthwise_input": (*[pointer] * 3, integer, integer, pointer, pointer),
        "depthwise_weight": (*[pointer] * 3, *[integer] * 3, pointer, pointer),
        "depthwise_floats": (pointer,),
        "whole_blocks": (),
    }
    for name, types in takes.items():
        function = getattr(loaded, f"memfit_{name}")
        function.argtypes, function.restype = types, integer if name in ("count", "depthwise_floats", "whole_blocks") else None
    return loaded


class NativeCoder:
    """Planes (samples, R, grid) to rows of bytes and gains, and back.

    Attributes:
        scratch_bytes: of each thread, while it works.
        nbytes: of the tensors that it keeps beside those of its positions.
    """

    def __init__(self, positions: Positions, transform: BlockTransform, grid: tuple[int, ...], means_R: Tensor) -> None:
        blocks = transform.blocks
        if transform.frequencies == 1:
            grid, blocks = (1, prod(grid)), (1, 1)
        (height, width), (block_height, block_width) = (1, 1, *grid)[-2:], (1, 1, *blocks)[-2:]
        # Codes of more than a byte first, where they are aligned.
        groups = list(positions.groups())
        order = sorted(range(len(groups)), key=lambda n: groups[n][0] <= 8)
        group_places, places, at = [0] * len(order), torch.zeros(positions.count, dtype=torch.int32), 0
        for n in order:
            bits, members, _, _ = groups[n]
            size = positions.blocks * (2 if bits > 8 else 1)
            group_places[n] = at
            places[members] = at + size * torch.arange(members.shape[0], dtype=torch.int32)
            at += size * members.shape[0]
        self._arrays = (
            cosines(block_height).float().contiguous(),
            cosines(block_width).float().contiguous(),
            means_R.contiguous(),
            positions.widths,
            positions.deviations(torch.float32),
            places,
            torch.tensor([width for width, *_ in groups], dtype=torch.int64),
            torch.tensor([members.shape[0] * positions.blocks for _, members, _, _ in groups], dtype=torch.int64),
            torch.tensor(group_places, dtype=torch.int64),
        )
        self.nbytes = sum(array.nbytes for array in self._arrays if array is not positions.widths)
        self._tables = _tables(positions.dither)
        addresses = [array.data_ptr() for array in self._arrays]
        self._sizes = (means_R.shape[0], height, width, block_height, block_width)
        tables = (table.data_ptr() for table in self._tables)
        shift = 0.0 if positions.dither else 0.5
        self._fields = (*self._sizes, *addresses[:6], len(order), *addresses[6:], positions.row_bytes, at, *tables, shift)
        self.row_bytes, self.shape = positions.row_bytes, (means_R.shape[0], height * width)
        self._code_bytes = _aligned(at)
        lanes, columns = -(-block_width // 8) * 8, width // block_width
        run = max(1, RUN // columns)  # rows of blocks
        floats = block_width * lanes + (4 + block_height) * (run * width + lanes) + run * columns * lanes + 64
        self.scratch_bytes = self._code_bytes + 4 * floats

    def encode(self, values: Tensor, codes: Tensor, gains: Tensor) -> None:
        """Code contiguous float32 `values` into `codes` (samples, row_bytes) and `gains` (samples,)."""
        plan, native = _Plan(*self._fields, 0.0, 0.0), library()
        assert native is not None and values.is_contiguous() and codes.is_contiguous()

        def work(start: int, stop: int, scratch: int) -> None:
            arrays = (values[start:].data_ptr(), stop - start, codes[start:].data_ptr(), gains[start:].data_ptr())
            native.memfit_encode(ctypes.byref(plan), *arrays, scratch, scratch + self._code_bytes)

        self._by_threads(values.shape[0], work)

    def decode(self, codes: Tensor, gains: Tensor, bounds: tuple[float, ...]) -> Tensor:
        """Values (samples, R, places), inside the bounds."""
        low, high = (*bounds, *(-float("inf"), float("inf"))[len(bounds) :])
        plan, native = _Plan(*self._fields, low, high), library()
        values = torch.empty(codes.shape[0], *self.shape)
        codes = codes.contiguous()
        assert native is not None

        def work(start: int, stop: int, scratch: int) -> None:
            arrays = (codes[start:].data_ptr(), gains[start:].data_ptr(), stop - start, values[start:].data_ptr())
            native.memfit_decode(ctypes.byref(plan), *arrays, scratch, scratch + self._code_bytes)

        if codes.shape[0] < threads() and values.numel() >= 2 * LEAST_PIECE:
            self._by_planes(plan, codes, gains, values)
        else:
            self._by_threads(codes.shape[0], work)
        return values

    def _by_planes(self, plan: _Plan, codes: Tensor, gains: Tensor, values: Tensor) -> None:
        """Decode a sample at a time, some planes of it by each thread."""
        native, floats = library(), _aligned(self.scratch_bytes - self._code_bytes)
        scratch = torch.empty(self._code_bytes + threads() * floats, dtype=torch.uint8)
        at = scratch.data_ptr()
        assert native is not None
        for sample, gain in enumerate(gains.tolist()):
            native.memfit_unpack(ctypes.byref(plan), codes[sample].data_ptr(), at)
            x = values[sample].data_ptr()

            def work(first: int, end: int, piece: int, gain: float = gain, x: int = x) -> None:
                native.memfit_decode_planes(ctypes.byref(plan), at, gain, first, end, x, at + self._code_bytes + piece * floats)

            by_pieces(self.shape[0], values[sample].numel(), work)

    def _by_threads(self, samples: int, work: Callable[[int, int, int], None]) -> None:
        count = min(samples, threads())
        if not count:
            return
        size = _aligned(self.scratch_bytes)
        scratch = torch.empty(count * size, dtype=torch.uint8)
        cuts = [samples * n // count for n in range(count + 1)]
        at_once(count, lambda n: work(cuts[n], cuts[n + 1], scratch.data_ptr() + n * size))


def _aligned(size: int) -> int:
    """Bytes up to the end of a cache line, so that no two threads write to one."""
    return -(-size // 64) * 64


@cache
def _tables(dither: bool) -> tuple[Tensor, ...]:
    """Steps and bends of each width from 0 to 16, what codes of up to 8 bits stand for, and where each width's begin."""
    known = quantisers(dither)
    steps = torch.tensor([known[width].step if width in known else 0.0 for width in range(17)])
    bends = torch.tensor([known[width].bend if width in known else 0.0 for width in range(17)])
    each = [levels(width, dither).float() if width in known and width <= MOST_MEANS else torch.empty(0) for width in range(17)]
    starts = torch.tensor([0, *accumulate(len(table) for table in each)][:17], dtype=torch.int64)
    return steps, bends, torch.cat(each), starts


def takes(x: Tensor) -> bool:
    """Whether what follows is there and made for such values."""
    return library() is not None and x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()


def allocate_whole_blocks() -> bool:
    """Let torch allocate tensors so that they leave holes of their size when they are freed; whether it does from now on."""
    native = library()
    return native is not None and bool(native.memfit_whole_blocks())


def rectify(x: Tensor, low: float, high: float, slope: float, result: Tensor, packed: Tensor) -> None:
    """`memfit.bits.rectify` of contiguous float32 into `result`, which may be `x`, and `packed`."""
    native = library()
    assert native is not None

    def work(start: int, stop: int, piece: int) -> None:
        x_at, result_at, packed_at = x.data_ptr() + 4 * start, result.data_ptr() + 4 * start, packed.data_ptr() + start // 8
        native.memfit_rectify(x_at, stop - start, low, high, slope, result_at, packed_at)

    by_pieces(x.numel(), x.numel(), work, unit=8)  # whole bytes of bits


def scale_by_bits(grad: Tensor, packed: Tensor, where_set: float, where_clear: float, result: Tensor) -> None:
    """`memfit.bits.scale_by_bits` of contiguous float32 into `result`."""
    native = library()
    assert native is not None

    def work(start: int, stop: int, piece: int) -> None:
        arrays = (grad.data_ptr() + 4 * start, packed.data_ptr() + start // 8, stop - start)
        native.memfit_scale(*arrays, where_set, where_clear, result.data_ptr() + 4 * start)

    by_pieces(grad.numel(), grad.numel(), work, unit=8)


def above_zero(x: Tensor, packed: Tensor) -> None:
    """`memfit.compaction.pack_above_zero` of contiguous float32 into `packed`."""
    native = library()
    assert native is not None

    def work(start: int, stop: int, piece: int) -> None:
        native.memfit_above_zero(x.data_ptr() + 4 * start, stop - start, packed.data_ptr() + start // 8)

    by_pieces(x.numel(), x.numel(), work, unit=8)


def count_set(packed: Tensor, rows: int, elements: int) -> Tensor:
    """`memfit.compaction.count_set`."""
    native = library()
    assert native is not None
    return torch.tensor([native.memfit_count(packed.data_ptr(), row * elements, elements) for row in range(rows)], dtype=torch.int64)


def compact(x: Tensor, packed: Tensor, first: int, counts: list[int], values: Tensor) -> None:
    """`memfit.compaction.compact` of contiguous float32, a row at a time."""
    native = library()
    assert native is not None

    def work(row: int, at: int) -> None:
        place = first + row * x.shape[1]
        arrays = (x.data_ptr() + 4 * row * x.shape[1], packed.data_ptr(), place, x.shape[1], values.data_ptr() + 4 * at)
        native.memfit_compact(*arrays, counts[row])

    _by_rows(counts, work)


def expand(values: Tensor, packed: Tensor, first: int, counts: list[int], x: Tensor) -> None:
    """`memfit.compaction.expand` to contiguous float32, a row at a time."""
    native = library()
    assert native is not None

    def work(row: int, at: int) -> None:
        place = first + row * x.shape[1]
        arrays = (values.data_ptr() + 4 * at, packed.data_ptr(), place, x.shape[1], x.data_ptr() + 4 * row * x.shape[1])
        native.memfit_expand(*arrays, counts[row])

    _by_rows(counts, work)


def _by_rows(counts: list[int], work: Callable[[int, int], None]) -> None:
    """Do the work of each row, whose elements begin after those of the rows before it."""
    places = list(accumulate(counts, initial=0))
    if sum(counts) < 2 * LEAST_PIECE:
        for row in range(len(counts)):
            work(row, places[row])
    else:
        at_once(len(counts), lambda row: work(row, places[row]))


def affine_gradients(grad: Tensor, x: Tensor | None, means_C: Tensor, scales_C: Tensor | None, sums_C: Tensor, dots_C: Tensor) -> None:
    """Add Σ grad of each channel to `sums_C` and Σ grad · (x - mean) to `dots_C`, both float64; multiply `grad` by its channel's scale.

    Args:
        grad, x: contiguous float32, shape (B, C, ...). Without `x` there are no dots.
        scales_C: None leaves `grad` as it is.
    """
    native, (samples, channels) = library(), grad.shape[:2]
    assert native is not None
    size = grad.numel() // max(1, samples * channels)
    addresses = [None if each is None else each.data_ptr() for each in (grad, x, means_C, scales_C)]

    def work(start: int, stop: int, piece: int) -> None:
        native.memfit_affine_gradients(*addresses, samples, channels, size, start, stop, sums_C.data_ptr(), dots_C.data_ptr())

    by_pieces(channels, grad.numel(), work)


if __name__ == "__main__":
    print("built" if library() else "not built: torch operations do its work")
