"""Means over patches of the spatial axes."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from memfit.forms.form import Held
from memfit.tucker import Decompose, decompose_mode


@dataclass(frozen=True, slots=True)
class PatchMean:
    """One mean in place of each patch of a map (B, C, *spatial); a patch at the edge may be smaller.

    Attributes:
        patch: size of a patch along each spatial axis.

    Source: Yang et al., Efficient On-device Training via Gradient Filtering, CVPR 2023, which takes means of the output gradient too:
    here that stays exact.
    """

    technique: ClassVar[str] = "patch_mean"
    patch: tuple[int, ...]

    def compress(self, x: Tensor, decompose: Decompose = decompose_mode) -> Held:
        means = x.contiguous()
        for axis, size in enumerate(self.patch, start=2):
            length = means.shape[axis]
            whole = means.narrow(axis, 0, length // size * size).unflatten(axis, (length // size, size)).mean(axis + 1)
            rest = length % size
            edge = [means.narrow(axis, length - rest, rest).mean(axis, keepdim=True)] if rest else []
            means = torch.cat([whole, *edge], axis)
        return (means.contiguous(),)

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int) -> Tensor:
        x = held[0][start:stop]
        for axis, size in enumerate(self.patch, start=2):
            x = x.repeat_interleave(size, axis).narrow(axis, 0, shape[axis])
        return x.contiguous()

    def held_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        return itemsize * prod(shape[:2]) * prod(-(-n // size) for n, size in zip(shape[2:], self.patch, strict=True))

    def compress_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        largest = itemsize * prod(shape) // max(1, self.patch[0]) + itemsize * prod(shape) // max(1, shape[2])
        return 2 * max(largest, self.held_bytes(shape, itemsize)) + 512  # and what small tensors take in whole words

    def restore_bytes(self, shape: tuple[int, ...], itemsize: int, samples: int) -> int:
        padded = prod(-(-n // size) * size for n, size in zip(shape[2:], self.patch, strict=True))
        return 2 * itemsize * samples * shape[1] * padded
