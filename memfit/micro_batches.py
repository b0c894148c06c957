"""Parts of a batch that go through the model one after the other, and what each counts in the mean loss of the whole.

The gradient of a mean over the batch is the weighted sum of the parts' gradients, where samples do not touch one another (no
batch statistics) and each part's weight is its share of what the mean runs over.
"""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from memfit.losses import IGNORED, counted

Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...], dict[str, Tensor], Tensor | tuple[Tensor, ...] | dict[str, Tensor])


def parts(inputs: Inputs, targets: Tensor | None, loss: str, micro_batch: int | None) -> Iterator[tuple[Inputs, Tensor | None, float]]:
    """Inputs, targets and weight of each part that counts.

    Args:
        loss: its name, as `loss_of` takes it. The mean of `output:NAME`, which only the model knows, is taken to be over samples.
        micro_batch: most samples in a part; None: all at once.

    Raises:
        ValueError: the model returns its own loss, and class indices to ignore are not spread evenly: then parts would not add up.
    """
    first = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values() if isinstance(inputs, dict) else inputs))
    samples = first.shape[0]
    if micro_batch is None or samples <= micro_batch:
        yield inputs, targets, 1.0
        return
    if targets is None:
        _check_evenly_ignored(inputs, micro_batch)
    whole = counted(loss, targets, samples)
    for start in range(0, samples, micro_batch):
        part = slice(start, start + micro_batch)
        some = None if targets is None else targets[part]
        count = counted(loss, some, min(micro_batch, samples - start))
        if count or not whole:
            yield _some(inputs, part), some, count / whole if whole else 1.0


def _check_evenly_ignored(inputs: Tensor | tuple[Tensor, ...] | dict[str, Tensor], micro_batch: int) -> None:
    """Refuse labels among the inputs whose parts have unlike shares to ignore: the mean of a loss then weighs samples differently."""
    every = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs.values()) if isinstance(inputs, dict) else inputs
    for labels in every:
        if labels.is_floating_point() or labels.dtype == torch.bool or not bool((labels == IGNORED).any()):
            continue
        ignored = (labels == IGNORED).flatten(1).double().mean(1) if labels.dim() > 1 else (labels == IGNORED).double()
        shares = [float(part.mean()) for part in ignored.split(micro_batch)]
        if max(shares) - min(shares) > 1e-12:
            raise ValueError(
                f"labels to ignore ({IGNORED}) are not spread evenly over parts of {micro_batch} samples, so their gradients "
                "would not add up to the batch's: plan without `micro_batch`, or with the loss outside the model"
            )


def _some(inputs: Inputs, part: slice) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs[part]
    if isinstance(inputs, dict):
        return {name: tensor[part] for name, tensor in inputs.items()}
    return tuple(tensor[part] for tensor in inputs)
