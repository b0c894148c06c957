"""An orthonormal transform of every sample: learned directions of the features, cosines over blocks of the grid.

The features of a convolution's input are its channels, those of a linear layer's its last axis; all other axes but the samples are
the grid. The grid is cut into blocks (JPEG's idea), so one small matrix serves any size of map and the coefficients of all blocks share
their statistics. Coefficients lie as (samples, positions, blocks): a position is a direction of the features and a frequency.

Source: discrete cosine transform, Ahmed, Natarajan & Rao 1974.
"""

from dataclasses import dataclass
from functools import reduce
from math import cos, pi, prod, sqrt

import torch
from torch import Tensor

from memfit.tucker import multiply_mode


@dataclass(frozen=True, slots=True)
class BlockTransform:
    """Where the features are and how the grid is cut.

    Attributes:
        feature: the axis of the features, counted from the front, at least 1.
        blocks: size of the blocks along each grid axis, in order; divides the axis.
    """

    feature: int
    blocks: tuple[int, ...]

    @property
    def frequencies(self) -> int:
        return prod(self.blocks)

    def blocks_of(self, shape: tuple[int, ...]) -> int:
        """Blocks in one sample of this shape."""
        return prod(shape[1:]) // (shape[self.feature] * self.frequencies)

    def centre(self, x: Tensor, mean_F: Tensor) -> Tensor:
        """Samples less the mean of each feature, in blocks: shape (samples, F, frequencies · blocks), in the type of `mean_F`."""
        split = self._split(x)
        values = torch.empty(split.shape, dtype=mean_F.dtype, device=x.device)
        torch.sub(split, mean_F.view(-1, *[1] * (split.dim() - 2)), out=values)
        return values.view(*split.shape[:2], -1)

    def forward(self, centred: Tensor, basis_RF: Tensor | None) -> Tensor:
        """Coefficients of what `centre` gave. Shape (samples, R · frequencies, blocks).

        Args:
            basis_RF: orthonormal rows; None takes the features as they are.
        """
        samples = centred.shape[0]
        values = centred if basis_RF is None else multiply_mode(centred, basis_RF)
        kept, blocks = values.shape[1], values.shape[2] // self.frequencies
        if self.frequencies > 1:
            values = multiply_mode(values.view(samples * kept, self.frequencies, blocks), self._cosines(values))
        return values.view(samples, kept * self.frequencies, blocks)

    def inverse(self, values: Tensor, shape: tuple[int, ...], mean_F: Tensor, basis_RF: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Samples whose coefficients these are: the transpose of `forward`, and the mean added. Contiguous."""
        samples, features = values.shape[0], shape[self.feature]
        kept = features if basis_RF is None else basis_RF.shape[0]
        if self.frequencies > 1:
            values = multiply_mode(values.reshape(samples * kept, self.frequencies, values.shape[2]), self._cosines(values).mT)
        values = values.reshape(samples, kept, prod(shape[1:]) // features)
        if basis_RF is not None:
            values = multiply_mode(values, basis_RF.mT)
        x = torch.empty(samples, *shape[1:], dtype=dtype, device=values.device)
        split = self._split(x)
        torch.add(values.view(split.shape), mean_F.view(-1, *[1] * (split.dim() - 2)), out=split)
        return x

    def _split(self, x: Tensor) -> Tensor:
        """A view (samples, features, places in a block ..., blocks ...)."""
        split = x.movedim(self.feature, 1)
        for axis in reversed(range(len(self.blocks))):
            split = split.unflatten(2 + axis, (split.shape[2 + axis] // self.blocks[axis], self.blocks[axis]))
        grid = range(len(self.blocks))
        return split.permute(0, 1, *(3 + 2 * axis for axis in grid), *(2 + 2 * axis for axis in grid))

    def _cosines(self, like: Tensor) -> Tensor:
        """The cosine transform of a block, all its axes in one matrix."""
        matrix = reduce(torch.kron, (cosines(size) for size in self.blocks))
        return matrix.to(like.device, like.dtype)


def cosines(size: int) -> Tensor:
    """The orthonormal cosine transform. Shape (size, size), float64, the constant row first."""
    rows = [[cos(pi * k * (2 * n + 1) / (2 * size)) * sqrt((2 if k else 1) / size) for n in range(size)] for k in range(size)]
    return torch.tensor(rows, dtype=torch.float64)
