"""Holding the input of an operation: whole or in a form, and working through it by ranges of samples."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn

from memfit.forms import Form, Held, Projection, Subspace
from memfit.shipped import tensors_of

RESTORE_BYTES = 4 << 20  # of dense tensor restored at once; one sample if that is more


class Restorable(Protocol):
    """What gives an activation back from what is held of it: a form, or a chain of operations."""

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int) -> Tensor:
        """Samples start..stop-1 of the activation, whose shape was `shape`."""
        ...


@dataclass(frozen=True, slots=True)
class HeldTensor:
    """An activation as its holders share it, not whole."""

    form: Restorable
    tensors: Held


class Hold(nn.Module):
    """Makes the form of an activation for all its holders; nothing when no backward will come."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self._form = form
        self._passes = 0
        for name, tensor in tensors_of(form).items():  # they move with the model, and leave its state_dict as it was
            self.register_buffer(name, tensor, persistent=False)

    @property
    def form(self) -> Form:
        own = {name: getattr(self, name) for name in tensors_of(self._form)}
        return replace(self._form, **own) if own else self._form  # type: ignore[type-var]

    def forward(self, x: Tensor) -> HeldTensor | None:
        if not torch.is_grad_enabled():
            return None
        with torch.no_grad():
            form = self.form
            if isinstance(form, Subspace) and self._passes % form.every:
                form = form.between
            self._passes += 1
            held = form.compress(x.detach())
            if isinstance(form, Subspace):  # whose factors those to come start from
                self.factors = held[1].to(self.get_buffer("factors").dtype, copy=True)
            return HeldTensor(form, held)


def unpacked(held: HeldTensor | None) -> tuple[Restorable | Tensor | None, ...]:
    """Form and tensors as arguments of an autograd function, which sees tensors only where they stand by themselves."""
    return (None,) if held is None else (held.form, *held.tensors)


def no_view(result: Tensor) -> Tensor:
    """A result that autograd does not take for a view of something, or nobody could write over it."""
    return torch.ops.aten._unsafe_view(result, result.shape) if result._is_view() else result


def samples_at_once(shape: tuple[int, ...], itemsize: int) -> int:
    """Samples of a held tensor that a backward restores at a time."""
    return min(max(1, RESTORE_BYTES // max(1, itemsize * prod(shape[1:]))), shape[0])


def restored_ranges(
    form: Restorable, held: Held, shape: torch.Size, itemsize: int, left: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """The held tensor, a range of samples at a time; with `left`, that mode of a projection in its directions."""
    step = max(1, samples_at_once(shape, itemsize))
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        if left is None:
            yield slice(start, stop), form.restore(held, shape, start, stop)
        else:
            assert isinstance(form, Projection)
            yield slice(start, stop), form.restore(held, shape, start, stop, left)
