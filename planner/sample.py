"""Batches of inputs and targets that stand for the device's data."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from planner.errors import BadSample

INPUTS, TARGETS = "inputs.", "targets"


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One input of a model. An axis of `shape` is None where the program takes any size."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step reads. `targets` is None for a model that returns its own loss."""

    inputs: tuple[Tensor, ...]
    targets: Tensor | None

    @property
    def bytes(self) -> int:
        tensors = self.inputs if self.targets is None else (*self.inputs, self.targets)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    @property
    def samples(self) -> int:
        return self.inputs[0].shape[0]

    def double(self) -> "Batch":
        """The same in float64, where it is floating."""

        def wider(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.double() if tensor.is_floating_point() else tensor

        return Batch(tuple(map(wider, self.inputs)), None if self.targets is None else wider(self.targets))

    def first(self, samples: int) -> "Batch":
        """Its first samples, without a copy."""
        return Batch(tuple(tensor[:samples] for tensor in self.inputs), None if self.targets is None else self.targets[:samples])


def batches_of(sample: Mapping[str, Tensor], inputs: tuple[ModelInput, ...], loss: str, batch_size: int | None) -> list[Batch]:
    """Split a sample into batches of equal size; samples left over are not used.

    Args:
        sample: `inputs.0`, `inputs.1`, ... or `inputs.NAME`, and `targets`; the first axis of all is the sample.
        batch_size: None for one batch of all.

    Raises:
        BadSample: tensors missing, unknown, of the wrong shape or type, or not finite.
    """
    tensors = [_input(sample, index, spec) for index, spec in enumerate(inputs)]
    targets = sample.get(TARGETS)
    if targets is None and not loss.startswith("output:"):
        raise BadSample(
            f"the sample has no tensor {TARGETS!r}, which loss {loss!r} compares the output with. Add it to the sample file.",
            missing=TARGETS,
        )
    known = {TARGETS, *(name for index, spec in enumerate(inputs) for name in (f"{INPUTS}{index}", INPUTS + spec.name))}
    unknown = sorted(set(sample) - known)
    if unknown:
        raise BadSample(f"the sample has {', '.join(unknown)}, which the model does not take; it takes {_names(inputs)}.", unknown=unknown)
    every = tensors if targets is None else [*tensors, targets]
    counts = {tensor.shape[0] if tensor.dim() else 0 for tensor in every}
    if len(counts) != 1 or 0 in counts:
        raise BadSample(
            f"all tensors of a sample have the samples on their first axis; these have {sorted(counts)} of them.", samples=sorted(counts)
        )
    count = counts.pop()
    size = batch_size or count
    if size > count:
        raise BadSample(
            f"the sample has {count} samples, fewer than one batch of {size}. Lower batch_size or send more.",
            samples=count,
            batch_size=size,
        )
    _check_finite(sample)
    for tensor, spec in zip(tensors, inputs, strict=True):
        _check_shape(tensor, spec, size)
    # Copies, so that a batch holds its own bytes and not the whole sample's.
    return [
        Batch(tuple(tensor[at : at + size].clone() for tensor in tensors), None if targets is None else targets[at : at + size].clone())
        for at in range(0, count - size + 1, size)
    ]


def _input(sample: Mapping[str, Tensor], index: int, spec: ModelInput) -> Tensor:
    for name in (INPUTS + spec.name, f"{INPUTS}{index}"):
        if name in sample:
            return sample[name]
    raise BadSample(
        f"the sample has no tensor '{INPUTS}{index}' (or '{INPUTS}{spec.name}'); it has {', '.join(sorted(sample)) or 'none'}.",
        missing=f"{INPUTS}{index}",
    )


def _check_shape(tensor: Tensor, spec: ModelInput, batch_size: int) -> None:
    shape = (batch_size, *tensor.shape[1:])
    fits = len(shape) == len(spec.shape) and all(want in (None, have) for want, have in zip(spec.shape, shape, strict=True))
    dtype = str(tensor.dtype).removeprefix("torch.")
    if fits and dtype == spec.dtype:
        return
    expected = f"{spec.dtype} ({', '.join('any' if size is None else str(size) for size in spec.shape)})"
    remedy = (
        "Export the model with a dynamic batch axis, or give batches of that size."
        if spec.shape[:1] not in ((None,), (batch_size,))
        else "Send what it takes."
    )
    raise BadSample(
        f"input {spec.name!r} takes {expected}, and the sample gives {dtype} {shape}. {remedy}",
        input=spec.name,
        expected=expected,
        given=f"{dtype} {shape}",
    )


def _check_finite(sample: Mapping[str, Tensor]) -> None:
    for name, tensor in sample.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            first = tuple(int(i) for i in (~torch.isfinite(tensor)).nonzero()[0])
            raise BadSample(
                f"{name} is not finite at {list(first)}: no gradient can come from it. Remove or repair that sample.",
                tensor=name,
                index=list(first),
            )


def _names(inputs: tuple[ModelInput, ...]) -> str:
    return ", ".join(f"{INPUTS}{index} ({spec.name})" for index, spec in enumerate(inputs)) + f" and {TARGETS}"
