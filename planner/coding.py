"""What a profile learns of a value for transform coding, and the form it makes of it for given bytes."""

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from memfit.allotment import CODES, allot, code_deviations, lost_share
from memfit.forms.coded import Coded, sample_ranges
from memfit.transform import BlockTransform

LARGEST_BASIS = 1024  # features; more would cost more time to learn and apply than it saves
FREQUENCIES = 64  # most of them in a block: the cosine transform costs as many products an element
SHARES_OF_DIRECTIONS = (1.0, 0.6, 0.35, 0.2, 0.1)


@dataclass(slots=True)
class Variant:
    """One transform of a value, and the energies of its positions relative to each sample's own (sum over samples and blocks)."""

    transform: BlockTransform
    learned: bool
    energies: Tensor | None = None


@dataclass(slots=True)
class Coding:
    """Statistics of one value's coefficients, in the transforms that come into question.

    Attributes:
        bounds: as in `memfit.forms.Coded`.
        mean, basis: of the features, from the first batch. The basis is None where the features are too many, or the first batch too
            small to learn it from.
    """

    shape: tuple[int, ...]
    itemsize: int
    feature: int
    bounds: tuple[float, ...]
    mean: Tensor | None = None
    basis: Tensor | None = None
    variants: list[Variant] = field(default_factory=list)
    samples: int = 0

    def add(self, x: Tensor) -> None:
        """Add a batch of the same shape."""
        if self.mean is None:
            self._learn(x)
        assert self.mean is not None
        self.samples += x.shape[0]
        for transform in dict.fromkeys(variant.transform for variant in self.variants):
            for start, stop in sample_ranges(x):
                centred = transform.centre(x[start:stop], self.mean)
                energy = centred.square().mean((1, 2))
                centred *= energy.clamp_min(torch.finfo(energy.dtype).tiny).rsqrt()[:, None, None]
                for variant in self.variants:
                    if variant.transform == transform:
                        energies = transform.forward(centred, self.basis if variant.learned else None).square_().sum((0, 2))
                        variant.energies = energies if variant.energies is None else variant.energies.add_(energies)

    def form(self, held_bytes: int) -> Coded | None:
        """The form that is predicted to lose least, of those whose bytes, shipped tensors included, are at most these."""
        best: tuple[float, Coded] | None = None
        for variant in self.variants:
            for form, lost in self._of(variant, held_bytes):
                if best is None or lost < best[0]:
                    best = lost, form
        return best[1] if best else None

    def _learn(self, x: Tensor) -> None:
        features = x.movedim(self.feature, 0).flatten(1).float()
        self.mean = features.mean(1)
        learned = [False]
        if features.shape[0] <= LARGEST_BASIS and 2 * features.shape[0] <= features.shape[1]:
            centred = features - self.mean[:, None]
            directions = torch.linalg.eigh(centred @ centred.mT)[1].flip(1)
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
        energies = variant.energies / (self.samples * blocks)
        codes, largest = code_deviations(energies.sqrt())
        features = self.shape[self.feature]
        forms = []
        for share in SHARES_OF_DIRECTIONS if variant.learned else (1.0,):
            kept = max(1, round(features * share))
            positions = kept * transform.frequencies
            shipped = 4 * features + positions + (2 * kept * features if variant.learned else 0)
            sample_bytes = (held_bytes - shipped) // self.shape[0] - self.itemsize
            if sample_bytes <= 0:
                continue
            counts = tuple(torch.bincount(codes[:positions], minlength=CODES).tolist())
            kept_energy = float(energies[:positions].sum())
            lost = float(energies.sum()) - kept_energy + kept_energy * lost_share(counts, allot(counts, blocks, sample_bytes))
            basis = self.basis[:kept].half() if variant.learned and self.basis is not None else None
            forms.append(
                (Coded(self.feature, transform.blocks, sample_bytes, largest, self.bounds, False, self.mean, basis, codes[:positions].clone()), lost * blocks)
            )
        return forms


def block_sizes(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Blocks to try: none, and the largest whose frequencies are at most FREQUENCIES."""
    if not grid:
        return [()]
    limit = int(FREQUENCIES ** (1 / len(grid)) + 1e-9)
    sizes = [tuple(max(size for size in range(1, most + 1) if axis % size == 0) for axis in grid) for most in (1, limit)]
    return list(dict.fromkeys(sizes))
