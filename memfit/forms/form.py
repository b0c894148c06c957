"""What every form an activation may be held in can do: bytes from shapes, compress, restore.

A form is restored by ranges of samples (its first axis), so that a backward pass never needs the dense tensor at once.
"""

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from memfit.tucker import Decompose, decompose_mode

Held = tuple[Tensor, ...]


class Form(Protocol):
    """One way to hold a tensor whose first axis is the sample."""

    technique: ClassVar[str]

    def compress(self, x: Tensor, decompose: Decompose = decompose_mode) -> Held:
        """The tensors held for `x`; each owns exactly its bytes, and none shares storage with `x`.

        `decompose` may be one that remembers, where several forms of one tensor are tried.
        """
        ...

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int) -> Tensor:
        """Samples start..stop-1 of the tensor that was compressed, whose shape was `shape`. Contiguous, of its own."""
        ...

    def held_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Most bytes `compress` can return for a tensor of this shape."""
        ...

    def compress_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Most bytes live at once while compressing, beyond the tensor itself; the result is among them."""
        ...

    def restore_bytes(self, shape: tuple[int, ...], itemsize: int, samples: int) -> int:
        """Most bytes live at once while restoring so many samples, beyond what is held."""
        ...
