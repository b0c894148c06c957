"""The losses of a planned step, by name."""

from typing import Any

import torch
from torch import Tensor

LOSSES = ("cross_entropy", "mse")
IGNORED = -100  # a class index that cross entropy leaves out


def loss_of(name: str, outputs: Any, targets: Tensor | None) -> Tensor:
    """The step's loss, a scalar, mean over the batch.

    Args:
        name: `cross_entropy` (logits and class indices), `mse`, or `output:NAME` for a model that returns its own loss.
        outputs: what the model returned: a tensor, or a dict or tuple of which `logits`, or else the first, is meant.
        targets: shape (B,) or (B, ...) for class indices, with the class axis of the logits second (as in
            `torch.nn.functional.cross_entropy`) or last; the shape of the output for `mse`; None for `output:NAME`.

    Raises:
        ValueError: the loss is not known, its output is not there, or targets are missing or do not fit.
    """
    if name.startswith("output:"):
        loss = _named(outputs, name.removeprefix("output:"))
        if loss.numel() != 1:
            raise ValueError(f"{name} has shape {tuple(loss.shape)}; a loss is one number")
        return loss.reshape(())
    if name not in LOSSES:
        raise ValueError(f"loss {name!r} is not known; use {', '.join(LOSSES)} or output:NAME")
    if targets is None:
        raise ValueError(f"loss {name!r} needs targets")
    predicted = _predicted(outputs)
    if name == "mse":
        if predicted.shape != targets.shape:
            raise ValueError(f"mse needs targets of the output's shape {tuple(predicted.shape)}, not {tuple(targets.shape)}")
        return torch.nn.functional.mse_loss(predicted, targets)
    if predicted.shape[:1] + predicted.shape[2:] != targets.shape and predicted.shape[:-1] == targets.shape:
        predicted, targets = predicted.flatten(0, -2), targets.flatten()
    elif predicted.shape[:1] + predicted.shape[2:] != targets.shape and predicted.shape != targets.shape:
        raise ValueError(f"cross_entropy of logits {tuple(predicted.shape)} does not take targets {tuple(targets.shape)}")
    return torch.nn.functional.cross_entropy(predicted, targets)


def counted(name: str, targets: Tensor | None, samples: int) -> int:
    """What the mean of a loss runs over in a batch: class indices that are not ignored, elements, or else samples."""
    if targets is None or name.startswith("output:"):
        return samples
    if name == "cross_entropy" and not targets.is_floating_point():
        return int((targets != IGNORED).sum())
    return targets.numel()


def _named(outputs: Any, name: str) -> Tensor:
    """The output at a path such as `loss`, `0` or `losses.0`."""
    value = outputs
    try:
        for part in name.split("."):
            if isinstance(value, (tuple, list)):
                value = value[int(part)]
            elif isinstance(value, dict):
                value = value[part]
            elif not (isinstance(value, Tensor) and part == "0"):
                value = getattr(value, part)
    except (KeyError, IndexError, ValueError, AttributeError):
        value = None
    if not isinstance(value, Tensor):
        raise ValueError(f"the model has no output {name!r}")
    return value


def _predicted(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, dict):
        outputs = [outputs["logits"]] if "logits" in outputs else list(outputs.values())
    first = outputs[0]
    assert isinstance(first, Tensor)
    return first
