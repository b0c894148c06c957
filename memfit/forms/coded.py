"""Transform coding: coefficients of an orthonormal transform, each in as many bits as its variance earns.

The bytes of every sample are the same, whatever the data. What a sample's energy is differs; so each is coded relative to its own
root mean square, its gain, which is held beside it. A gain that is not finite marks a sample that was not, and restores to NaN.

Sources: transform coding, Huang & Schultheiss 1963; unbiased rounding, Gupta et al. 2015.
"""

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from memfit.allotment import code_deviations
from memfit.forms.form import Held
from memfit.native import NativeCoder, library
from memfit.positions import Positions
from memfit.threads import threads
from memfit.transform import BlockTransform
from memfit.tucker import Decompose, decompose_mode

PIECE_BYTES = 2 << 20  # of samples coded at once; one sample if that is more


# B = samples, F = features, R = directions kept, P = positions (R · frequencies), M = blocks of a sample
@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Transform, then bits by water-filling.

    Attributes:
        feature, blocks: as in `BlockTransform`.
        sample_bytes: most bytes of a sample's packed coefficients.
        largest: the deviation, relative to the gain, that code 255 of `deviations` means.
        bounds: what no value is below, and what none is above, if known: (), (low,) or (low, high). Restored values keep to it, which
            can only bring them nearer.
        dither: round at random (seeded by `torch.manual_seed`), so that the restored value of a coefficient that has bits and is inside
            their range is right on average; by itself it is the nearest.
        mean: of every feature. Shape (F,).
        basis: orthonormal directions of the features, largest energy first. Shape (R, F); int8 ones are to be brought to length 1, and
            orthonormal but for their rounding. None codes the features as they are.
        deviations: codes of the deviation of every position, uint8, shape (P,), shipped from a profile (`static`). None: worked out
            from each batch and held with it (`adaptive`), in P bytes.
    """

    technique: ClassVar[str] = "coded"
    feature: int
    blocks: tuple[int, ...]
    sample_bytes: int
    largest: float
    bounds: tuple[float, ...]
    dither: bool
    mean: Tensor
    basis: Tensor | None = None
    deviations: Tensor | None = None

    @property
    def transform(self) -> BlockTransform:
        return BlockTransform(self.feature, self.blocks)

    @property
    def products(self) -> int:
        """Multiplications for each element, one way: what the transform costs, with cosines along one axis after the other."""
        return (0 if self.basis is None else self.basis.shape[0]) + sum(size for size in self.blocks if size > 1)

    def compress(self, x: Tensor, decompose: Decompose = decompose_mode) -> Held:
        mean_F, basis_RF = self._shipped(x.dtype)
        deviations, largest = self.deviations, self.largest
        if deviations is None:
            deviations, largest = self._deviations(x, mean_F, basis_RF)
        positions = self._positions_of(deviations, largest, tuple(x.shape))
        codes = torch.empty(x.shape[0], positions.row_bytes, dtype=torch.uint8, device=x.device)
        gains_B = torch.empty(x.shape[0], dtype=x.dtype, device=x.device)
        coder = self._coder(positions, x.dtype, tuple(x.shape), mean_F, basis_RF)
        if coder is not None and not self.dither:
            for start, stop in [(0, x.shape[0])] if basis_RF is None else sample_ranges(x):
                coder.encode(self.transform.directions(x[start:stop], basis_RF), codes[start:stop], gains_B[start:stop])
        else:
            for start, stop in sample_ranges(x):
                values, gains_B[start:stop] = self._coefficients(x[start:stop], mean_F, basis_RF)
                # What is divided by is what is held: rounded to the type of `x`.
                inverse_B = gains_B[start:stop].to(values.dtype).clamp_min(torch.finfo(x.dtype).tiny).reciprocal_()
                positions.pack(values.mul_(inverse_B[:, None, None]), codes[start:stop])
        if self.deviations is None:
            return codes, gains_B, deviations, gains_B.new_tensor([largest])
        return codes, gains_B

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int) -> Tensor:
        codes, gains_B, *table = held
        mean_F, basis_RF = self._shipped(gains_B.dtype)
        deviations, largest = self.deviations, self.largest
        if table:
            deviations, largest = table[0], float(table[1])
        assert deviations is not None
        positions = self._positions_of(deviations, largest, tuple(shape))
        coder = self._coder(positions, gains_B.dtype, tuple(shape), mean_F, basis_RF)
        gains_B = gains_B[start:stop]
        if coder is not None:
            bounds = self.bounds if basis_RF is None else ()
            values = coder.decode(codes[start:stop], gains_B, bounds)
            x = self.transform.features(values, tuple(shape), mean_F, basis_RF)
            return x.clamp_(*self.bounds) if basis_RF is not None and self.bounds else x
        x = self.transform.inverse(  # which is to own the coefficients, and can let them go
            positions.unpack(codes[start:stop], gains_B.to(mean_F.dtype)), tuple(shape), mean_F, basis_RF, gains_B.dtype
        )
        return x.clamp_(*self.bounds) if self.bounds else x

    def held_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        if self.deviations is None:  # most bytes: those of a batch follow from its table
            return shape[0] * (self.sample_bytes + itemsize) + self._positions + itemsize
        return shape[0] * (self._positions_of(self.deviations, self.largest, shape).row_bytes + itemsize)

    def table_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Bytes of what the first step works out from the shipped table, and the next ones find there."""
        if self.deviations is None:
            return 0
        positions = self._positions_of(self.deviations, self.largest, shape)
        if itemsize == 4:
            self._coder(positions, torch.float32, shape, *self._shipped(torch.float32))
        return positions.nbytes

    def compress_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        samples = min(shape[0], _samples_at_once(shape, itemsize))
        return self.held_bytes(shape, itemsize) + self._work_bytes(shape, itemsize, samples)

    def restore_bytes(self, shape: tuple[int, ...], itemsize: int, samples: int) -> int:
        return self._work_bytes(shape, itemsize, samples)

    def _work_bytes(self, shape: tuple[int, ...], itemsize: int, samples: int) -> int:
        """Samples twice, or once beside their coefficients, or these beside the largest group of one width while that is packed."""
        whole = max(4, itemsize) * samples * prod(shape[1:])
        share = self._directions / max(1, self.mean.shape[0])
        group = 1.0
        if self.deviations is not None:
            group = self._positions_of(self.deviations, self.largest, shape).largest_group
        packing = share * (1 + 2.25 * group)
        shipped = 0 if self.basis is None else max(4, itemsize) * self.basis.numel()
        return int(whole * max(2.0, 1 + share, packing)) + shipped + 32 * self._positions + 65536

    @property
    def _positions(self) -> int:
        return self._directions * self.transform.frequencies

    @property
    def _directions(self) -> int:
        return self.mean.shape[0] if self.basis is None else self.basis.shape[0]

    def _shipped(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Mean and basis in the type to work in: float32, or float64 for float64."""
        work = torch.float64 if dtype == torch.float64 else torch.float32
        if self.basis is None:
            return self.mean.to(work), None
        basis_RF = self.basis.to(work)
        return self.mean.to(work), unit_rows(basis_RF) if self.basis.dtype == torch.int8 else basis_RF

    def _positions_of(self, deviations: Tensor, largest: float, shape: tuple[int, ...]) -> Positions:
        """Worked out once for each table, which is the same tensor as long as it is held."""
        known = _POSITIONS.setdefault(deviations, {})
        key = (largest, self.transform.blocks_of(shape), self.sample_bytes, self.dither)
        if key not in known:
            known[key] = Positions(deviations, *key)
        return known[key]

    def _coder(
        self, positions: Positions, dtype: torch.dtype, shape: tuple[int, ...], mean_F: Tensor, basis_RF: Tensor | None
    ) -> NativeCoder | None:
        """The C way, where it is there and made for such values."""
        if library() is None or dtype != torch.float32 or mean_F.device.type != "cpu":
            return None
        grid = tuple(size for axis, size in enumerate(shape) if axis not in (0, self.feature))
        if len(grid) > 2 and self.transform.frequencies > 1:
            return None
        if grid not in positions.coders:
            means_R = mean_F if basis_RF is None else basis_RF @ mean_F
            positions.coders[grid] = NativeCoder(positions, self.transform, grid, means_R)
        return positions.coders[grid]

    def _coefficients(self, x: Tensor, mean_F: Tensor, basis_RF: Tensor | None) -> tuple[Tensor, Tensor]:
        """Coefficients (samples, P, M) and gains (samples,)."""
        values = self.transform.forward(x, mean_F, basis_RF)
        norms = torch.linalg.vector_norm(values, dim=(1, 2))
        if not bool(((norms > 1e-15) & (norms < 1e15)).all()):  # squares in float32 may have left its range
            norms = torch.linalg.vector_norm(values, dim=(1, 2), dtype=torch.float64)
        gains = torch.where(norms.isfinite(), norms / max(1, values[0].numel()) ** 0.5, torch.nan).to(values.dtype)
        return values, gains

    def _deviations(self, x: Tensor, mean_F: Tensor, basis_RF: Tensor | None) -> tuple[Tensor, float]:
        """The code of every position's deviation in this batch."""
        total = None
        for start, stop in sample_ranges(x):
            values, gains = self._coefficients(x[start:stop], mean_F, basis_RF)
            energy_P = values.div_(gains.clamp_min(torch.finfo(x.dtype).tiny)[:, None, None]).square_().sum((0, 2))
            total = energy_P if total is None else total.add_(energy_P)
        assert total is not None
        blocks = self.transform.blocks_of(tuple(x.shape))
        return code_deviations(total.div_(max(1, x.shape[0] * blocks)).nan_to_num_(0.0).sqrt_())


def unit_rows(basis_RF: Tensor) -> Tensor:
    """Directions at length 1, in place; one of zeros stays."""
    return basis_RF.div_(torch.linalg.vector_norm(basis_RF, dim=1, keepdim=True).clamp_min(torch.finfo(basis_RF.dtype).tiny))


def _samples_at_once(shape: tuple[int, ...], itemsize: int) -> int:
    return max(threads() if library() else 1, PIECE_BYTES // max(1, itemsize * prod(shape[1:])))


_POSITIONS: MutableMapping[Tensor, dict[tuple[float, int, int, bool], Positions]] = WeakTensorKeyDictionary()


def sample_ranges(x: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of samples to code at once."""
    step = _samples_at_once(tuple(x.shape), x.element_size())
    for start in range(0, x.shape[0], step):
        yield start, min(start + step, x.shape[0])
