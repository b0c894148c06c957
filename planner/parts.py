"""Whether a batch may go through the model in parts, and in which sizes."""

import torch

from memfit.losses import loss_of
from memfit.micro_batches import parts
from memfit.program import call_with
from planner.capture import TrainingGraph
from planner.fidelity import without_dropout
from planner.sample import Batch

SMALLEST_DIFFERENCE = 1e-3  # of the gradient's norm: far above rounding, far below what samples that touch one another change


def part_sizes(graph: TrainingGraph, batch: Batch, loss: str) -> tuple[int, ...]:
    """Samples at a time: all of them, and then a half, a quarter, ... where the parts' gradients add up to that of the whole."""
    sizes = [batch.samples]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return tuple(sizes) if batch.samples > 1 and _add_up(graph, batch, loss, sizes[1]) else (batch.samples,)


def _add_up(graph: TrainingGraph, batch: Batch, loss: str, samples: int) -> bool:
    try:
        whole, summed = _gradient(graph, batch, loss, None), _gradient(graph, batch, loss, samples)
    except (RuntimeError, ValueError, IndexError):  # a program for one batch size alone
        return False
    difference = sum(float((g - summed[name]).double().square().sum()) for name, g in whole.items() if name in summed)
    norm = sum(float(g.double().square().sum()) for g in whole.values())
    return whole.keys() == summed.keys() and difference <= SMALLEST_DIFFERENCE**2 * norm


def _gradient(graph: TrainingGraph, batch: Batch, loss: str, micro_batch: int | None) -> dict[str, torch.Tensor]:
    module = without_dropout(graph.rewritten(graph.exact_recipe(loss)))
    for inputs, targets, weight in parts(batch.inputs, batch.targets, loss, micro_batch):
        (loss_of(loss, call_with(module, inputs), targets) * weight).backward()
    gradient = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return gradient
