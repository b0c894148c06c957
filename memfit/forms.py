"""The forms an activation is held in instead of whole: bytes from shapes, compress, restore.

A form is restored by ranges of samples (its first axis), so that a backward pass never needs the dense tensor at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from memfit.tucker import Decompose, decompose_mode, gram_bytes, multiply_mode, truncate_mode

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
        """Samples start..stop-1 of the tensor that was compressed, whose shape was `shape`. Contiguous."""
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


@dataclass(frozen=True, slots=True)
class Svd:
    """Truncated singular value decomposition of one matricisation: modes first..last-1 against all others.

    Attributes:
        modes: first and last+1 of the run of modes that forms the rows.
        rank: most directions kept.
        threshold: share of the energy at which fewer directions suffice.

    Source: arXiv 2411.06346, section 3.2, there for the first mode alone.
    """

    technique: ClassVar[str] = "svd"
    modes: tuple[int, int]
    rank: int
    threshold: float

    def compress(self, x: Tensor, decompose: Decompose = decompose_mode) -> Held:
        start, stop = self.modes
        core_LRR, factor_NR = truncate_mode(x.contiguous(), start, stop, self.rank, self.threshold, decompose)
        return core_LRR, factor_NR

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int) -> Tensor:
        core, factor = held
        if self.modes[0] == 0:
            factor = factor.view(shape[0], -1, factor.shape[1])[start:stop].flatten(0, 1)
        else:
            core = core.view(shape[0], -1, *core.shape[1:])[start:stop].flatten(0, 1)
        return multiply_mode(core, factor).view(stop - start, *shape[1:])

    def held_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        size = prod(shape[self.modes[0] : self.modes[1]])
        rest = prod(shape) // max(size, 1)
        return itemsize * min(self.rank, size, rest) * (size + rest)

    def compress_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        size = prod(shape[self.modes[0] : self.modes[1]])
        return gram_bytes(size, itemsize) + self.held_bytes(shape, itemsize)

    def restore_bytes(self, shape: tuple[int, ...], itemsize: int, samples: int) -> int:
        return itemsize * samples * prod(shape[1:])


@dataclass(frozen=True, slots=True)
class Hosvd:
    """Tucker core and one factor a mode, by sequentially truncated higher-order SVD.

    Attributes:
        ranks: most directions kept, one number a mode. A mode whose rank is its size is left as it is: it has no factor.
        threshold: share of the energy, for each mode, at which fewer directions suffice.

    Source: arXiv 2411.06346, section 3.3; the sequence of truncations, Vannieuwenhoven et al. 2012.
    """

    technique: ClassVar[str] = "hosvd"
    ranks: tuple[int, ...]
    threshold: float

    def compress(self, x: Tensor, decompose: Decompose = decompose_mode) -> Held:
        core = x.contiguous()
        factors: dict[int, Tensor] = {}
        for mode in self._order(core.shape):
            shape = list(core.shape)
            projected, factors[mode] = truncate_mode(core, mode, mode + 1, self.ranks[mode], self.threshold, decompose)
            shape[mode] = projected.shape[1]
            core = projected.view(shape)
        if not factors:
            core = core.clone()
        return core, *(factors[mode] for mode in sorted(factors))

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int) -> Tensor:
        core, *factors = held
        truncated = sorted(self._order(shape))
        if 0 in truncated:
            factors[0] = factors[0][start:stop]
        else:
            core = core[start:stop]
        # Grow the mode that grows least first: the dense tensor comes last.
        for mode, factor in sorted(zip(truncated, factors, strict=True), key=lambda pair: pair[1].shape[0] / pair[1].shape[1]):
            sizes = list(core.shape)
            core_LNR = core.reshape(prod(sizes[:mode]), sizes[mode], prod(sizes[mode + 1 :]))
            sizes[mode] = factor.shape[0]
            core = multiply_mode(core_LNR, factor).view(sizes)
        return core

    def held_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        ranks = [min(rank, size) for rank, size in zip(self.ranks, shape, strict=True)]
        factors = sum(size * rank for size, rank in zip(shape, ranks, strict=True) if rank < size)
        return itemsize * (prod(ranks) + factors)

    def compress_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        sizes, most, before = list(shape), 0, 0
        for mode in self._order(shape):
            workspace = gram_bytes(sizes[mode], itemsize)
            sizes[mode] = self.ranks[mode]
            most, before = max(most, before + itemsize * prod(sizes) + workspace), itemsize * prod(sizes)
        return max(most, self.held_bytes(shape, itemsize))

    def restore_bytes(self, shape: tuple[int, ...], itemsize: int, samples: int) -> int:
        ranks = [min(rank, size) for rank, size in zip(self.ranks, shape, strict=True)]
        growth = max((size / rank for rank, size in zip(ranks[1:], shape[1:], strict=True)), default=1.0)
        dense = itemsize * samples * prod(shape[1:])
        return dense + int(dense / growth)  # the mode that grows most comes last, from what was before it

    def _order(self, shape: tuple[int, ...]) -> list[int]:
        """Modes to truncate, most shrinking first, so that the later ones work on little."""
        modes = [mode for mode, size in enumerate(shape) if self.ranks[mode] < size]
        return sorted(modes, key=lambda mode: self.ranks[mode] / shape[mode])


FORMS: Mapping[str, type[Svd] | type[Hosvd]] = {form.technique: form for form in (Svd, Hosvd)}


def form_from_settings(technique: str, settings: Mapping[str, object]) -> Form:
    """The form that a plan names.

    Raises:
        ValueError: no technique of that name holds tensors, or its settings are not those it takes.
    """
    if technique not in FORMS:
        raise ValueError(f"technique {technique!r} is not one of {', '.join(FORMS)}: this memfit is older than the checkpoint")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    try:
        return FORMS[technique](**values)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"technique {technique!r} with settings {values}: {error}") from None
