"""Handwritten digits twice: as the network learns them, and shifted, as a device meets them."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, radians, sin

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

IMAGE_SIDE = 32
ROTATION_DEGREES = (20.0, 35.0)
NOISE = 0.15


@dataclass(frozen=True, slots=True)
class Digits:
    """Images (count, 1, 32, 32) with values around 0..1, and the digit each shows (count,)."""

    images: Tensor
    digits: Tensor

    def __len__(self) -> int:
        return len(self.digits)

    def part(self, start: int, stop: int) -> "Digits":
        return Digits(self.images[start:stop].clone(), self.digits[start:stop].clone())

    def batches(self, size: int) -> Iterator["Digits"]:
        """All of them in a new order, in whole batches; what is left over waits for the next order."""
        order = torch.randperm(len(self))
        for chosen in order[: len(self) // size * size].split(size):
            yield Digits(self.images[chosen], self.digits[chosen])


@dataclass(frozen=True, slots=True)
class DemoData:
    """`source` trains the network; the device tunes it on `device` and is judged on `held_out`. No image is in two of them."""

    source: Digits
    source_held_out: Digits
    device: Digits
    held_out: Digits


def load() -> DemoData:
    """The same split and the same shift every time."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    small = torch.tensor(bunch.images / 16.0, dtype=torch.float32)[:, None]
    images = functional.interpolate(small, size=(IMAGE_SIDE, IMAGE_SIDE), mode="bilinear", align_corners=False)
    everything = Digits(images[order], torch.tensor(bunch.target)[order])
    return DemoData(
        source=everything.part(0, 768),
        source_held_out=everything.part(768, 968),
        device=shifted(everything.part(968, 1480), seed=1),
        held_out=shifted(everything.part(1480, len(everything)), seed=2),
    )


def shifted(digits: Digits, seed: int) -> Digits:
    """What another camera, held askew, makes of them: each image turned by 20 to 35 degrees, and noise on every pixel."""
    generator = torch.Generator().manual_seed(seed)
    low, high = ROTATION_DEGREES
    degrees = low + (high - low) * torch.rand(len(digits), generator=generator)
    turn = torch.tensor([[[cos(a), -sin(a), 0.0], [sin(a), cos(a), 0.0]] for a in map(radians, degrees.tolist())])
    grid = functional.affine_grid(turn, list(digits.images.shape), align_corners=False)
    turned = functional.grid_sample(digits.images, grid, align_corners=False)
    return Digits(turned + NOISE * torch.randn(turned.shape, generator=generator), digits.digits)
