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

    def forward(self, x: Tensor, mean_F: Tensor, basis_RF: Tensor | None) -> Tensor:
        """Coefficients of samples less their mean. Shape (samples, R · frequencies, blocks), in the type of `mean_F`.

        Args:
            mean_F: of each feature. Subtracted where it is: in the constant frequency.
            basis_RF: orthonormal rows; None takes the features as they are.
        """
        split = self._split(x)
        samples, features = split.shape[:2]
        values = torch.empty(split.shape, dtype=mean_F.dtype, device=x.device).copy_(split).view(samples, features, -1)
        if basis_RF is not None:
            values = multiply_mode(values, basis_RF)
        kept, blocks = values.shape[1], values.shape[2] // self.frequencies
        if self.frequencies > 1:
            values = multiply_mode(values.view(samples * kept, self.frequencies, blocks), self._cosines(values))
        values = values.view(samples, kept, self.frequencies, blocks)
        values[:, :, 0].sub_(self._constant(mean_F, basis_RF))
        return values.view(samples, kept * self.frequencies, blocks)

    def inverse(self, values: Tensor, shape: tuple[int, ...], mean_F: Tensor, basis_RF: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Samples whose coefficients these are: the transpose of `forward`, and the mean added. Contiguous. Changes `values`."""
        samples, features = values.shape[0], shape[self.feature]
        kept = features if basis_RF is None else basis_RF.shape[0]
        blocks = values.shape[2]
        values.view(samples, kept, self.frequencies, blocks)[:, :, 0].add_(self._constant(mean_F, basis_RF))
        if self.frequencies > 1:
            values = multiply_mode(values.view(samples * kept, self.frequencies, blocks), self._cosines(values).mT)
        values = values.reshape(samples, kept, self.frequencies * blocks)
        if basis_RF is not None:
            values = multiply_mode(values, basis_RF.mT)
            values.add_(self._beyond(mean_F, basis_RF))
        x = torch.empty(samples, *shape[1:], dtype=dtype, device=values.device)
        split = self._split(x)
        split.copy_(values.view(split.shape))
        return x

    def directions(self, x: Tensor, basis_RF: Tensor | None) -> Tensor:
        """Samples as maps of directions, before the cosine transform. Shape (samples, R, places), contiguous; `x` itself if it can be."""
        values = x.movedim(self.feature, 1).flatten(2) if x.dim() > 2 else x[:, :, None]
        if basis_RF is None:
            return values.contiguous()
        if self.feature == 1:
            return multiply_mode(values.contiguous(), basis_RF)
        return torch.bmm(basis_RF.expand(len(values), *basis_RF.shape), values)

    def features(self, values: Tensor, shape: tuple[int, ...], mean_F: Tensor, basis_RF: Tensor | None) -> Tensor:
        """Samples from maps of directions, mean included. Contiguous."""
        samples = values.shape[0]
        if basis_RF is not None:
            beyond = self._beyond(mean_F, basis_RF).expand(samples, mean_F.shape[0], values.shape[2])
            values = torch.baddbmm(beyond, basis_RF.mT.expand(samples, *basis_RF.mT.shape), values)
        grid = [size for axis, size in enumerate(shape) if axis not in (0, self.feature)]
        return values.view(samples, -1, *grid).movedim(1, self.feature).contiguous()

    def _constant(self, mean_F: Tensor, basis_RF: Tensor | None) -> Tensor:
        """The constant coefficients of a sample that is the mean everywhere. Shape (R, 1)."""
        means: Tensor = mean_F if basis_RF is None else basis_RF @ mean_F
        return means[:, None] * sqrt(self.frequencies)

    def _beyond(self, mean_F: Tensor, basis_RF: Tensor) -> Tensor:
        """What of the mean lies outside the directions kept. Shape (F, 1)."""
        return (mean_F - basis_RF.mT @ (basis_RF @ mean_F))[:, None]

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
