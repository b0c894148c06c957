"""What a profile learns of a value for transform coding, and the form it makes of it for given bytes."""

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from memfit.allotment import CODES, allot, code_deviations, lost_share
from memfit.forms.coded import Coded, sample_ranges, unit_rows
from memfit.transform import BlockTransform
from memfit.tucker import eigh

LARGEST_BASIS = 1024  # features; more would cost more time to learn and apply than it saves
FREQUENCIES = 64  # most of them in a block: the cosine transform costs as many products an element
FEWEST_BLOCKS = 16  # in a sample, unless it is one block: matrix products with fewer columns are slow, and their tables large
FEWEST_ALONG = 4  # of a grid of one axis, tried too: neighbouring tokens have much in common, and one axis costs little
# What a transform may cost: so many multiplications an element count as much as all the energy it loses once more. A few, which the time
# for memory hides, and some for each of the holder's own: what is slow beside a depthwise convolution is little beside a wide one.
FREE_PRODUCTS, PRODUCTS_OF_WORK = 20, 3
SHARES_OF_DIRECTIONS = (1.0, 0.6, 0.35, 0.2, 0.1)


@dataclass(slots=True)
class Variant:
    """One transform of a value, and the energies of its positions relative to each sample's mean (sum over samples)."""

    transform: BlockTransform
    learned: bool
    energies: Tensor | None = None


@dataclass(slots=True)
class Coding:
    """Statistics of one value's coefficients, in the transforms that come into question.

    Attributes:
        bounds: as in `memfit.forms.Coded`.
        work: multiplications for each element by the operation that holds it, one way.
        mean, basis: of the features, from the first batch. The basis is None where the features are too many, or the first batch too
            small to learn it from.
        rounded: the basis in int8, and the squared products of its directions, which are not quite at right angles.
    """

    shape: tuple[int, ...]
    itemsize: int
    feature: int
    bounds: tuple[float, ...]
    work: float
    mean: Tensor | None = None
    basis: Tensor | None = None
    rounded: tuple[Tensor, Tensor] | None = None
    variants: list[Variant] = field(default_factory=list)
    samples: int = 0

    def add(self, x: Tensor) -> None:
        """Add a batch of the same shape."""
        if self.mean is None:
            self._learn(x)
        assert self.mean is not None
        self.samples += x.shape[0]
        for variant in self.variants:
            for start, stop in sample_ranges(x):
                values = variant.transform.forward(x[start:stop], self.mean, self.basis if variant.learned else None)
                energies_BP = values.square_().sum(2)
                energies_BP /= energies_BP.mean(1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
                variant.energies = energies_BP.sum(0) if variant.energies is None else variant.energies.add_(energies_BP.sum(0))

    def form(self, held_bytes: int) -> Coded | None:
        """The form of at most these bytes, shipped tensors included, that is predicted to lose the least, at a price for its time."""
        forms = [each for variant in self.variants for each in self._of(variant, held_bytes)]
        priced = [(lost * (1 + form.products / self.products_worth), form.products, form) for form, lost in forms]
        return min(priced, key=lambda each: each[:2])[2] if priced else None

    @property
    def products_worth(self) -> float:
        """Multiplications an element that count as much as all the energy lost once more."""
        return FREE_PRODUCTS + PRODUCTS_OF_WORK * self.work

    def _learn(self, x: Tensor) -> None:
        features = x.movedim(self.feature, 0).flatten(1).float()
        self.mean = features.mean(1)
        learned = [False]
        if features.shape[0] <= LARGEST_BASIS and 2 * features.shape[0] <= features.shape[1]:
            centred = features - self.mean[:, None]
            directions = eigh(centred @ centred.mT)[1].flip(1)
            self.basis = directions.mT.contiguous().half().float()
            learned.append(True)
        grid = tuple(size for axis, size in enumerate(self.shape) if axis not in (0, self.feature))
        for blocks in block_sizes(grid):
            transform = BlockTransform(self.feature, blocks)
            self.variants += [Variant(transform, each) for each in learned]

    def _of(self, variant: Variant, held_bytes: int) -> list[tuple[Coded, float]]:
        if variant.energies is None or self.mean is None:
            return []
        transform, blocks = variant.transform, variant.transform.blocks_of(self.shape)
        energies = variant.energies / self.samples
        codes, largest = code_deviations(energies.sqrt())
        features = self.shape[self.feature]
        forms = []
        for share in SHARES_OF_DIRECTIONS if variant.learned else (1.0,):
            kept = max(1, round(features * share))
            for basis_RF, departs in self._bases(kept, energies) if variant.learned else [(None, 0.0)]:
                positions = kept * transform.frequencies
                shipped = 4 * features + positions + (0 if basis_RF is None else basis_RF.nbytes)
                sample_bytes = (held_bytes - shipped) // self.shape[0] - self.itemsize
                if sample_bytes <= 0:
                    continue
                own = codes[:positions].clone()
                counts = tuple(torch.bincount(own, minlength=CODES).tolist())
                share_kept = float(energies[:positions].sum() / energies.sum())
                lost = 1 - share_kept + share_kept * lost_share(counts, allot(counts, blocks, sample_bytes, False), False) + departs
                # Deviations are relative to a gain, which is that of the coefficients kept.
                relative = largest * (positions / energies.numel() / share_kept) ** 0.5
                form = Coded(self.feature, transform.blocks, sample_bytes, relative, self.bounds, False, self.mean, basis_RF, own)
                forms.append((form, lost))
        return forms

    def _bases(self, kept: int, energies: Tensor) -> list[tuple[Tensor, float]]:
        """The first directions, in two bytes an element and in one; and the energy lost for those not being at right angles."""
        assert self.basis is not None
        if self.rounded is None:
            rounded_RF = (self.basis * (127 / self.basis.abs().amax(1, keepdim=True).clamp_min(1e-30))).round_().to(torch.int8)
            unit_RF = unit_rows(rounded_RF.float())
            self.rounded = rounded_RF, (unit_RF @ unit_RF.mT).fill_diagonal_(0.0).square_()
        rounded_RF, off_RR = self.rounded
        energies_R = energies.view(self.basis.shape[0], -1).sum(1)
        departs = float((off_RR[:kept, :kept] @ energies_R[:kept]).sum() / energies_R.sum())
        return [(self.basis[:kept].half(), 0.0), (rounded_RF[:kept].clone(), departs)]


def block_sizes(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Blocks to try: none; the largest of which a sample has enough; and the whole grid where it is small."""
    sizes = [tuple(1 for _ in grid)]
    limit = int(FREQUENCIES ** (1 / max(1, len(grid))) + 1e-9)
    for fewest in (FEWEST_BLOCKS, FEWEST_ALONG) if len(grid) == 1 else (FEWEST_BLOCKS,):
        for most in range(limit, 1, -1):
            blocks = tuple(max(size for size in range(1, most + 1) if axis % size == 0) for axis in grid)
            if prod(grid) // prod(blocks) >= fewest:
                sizes.append(blocks)
                break
    if prod(grid) <= FREQUENCIES:
        sizes.append(grid)
    return list(dict.fromkeys(sizes))
