"""Whether a batch may go through the model in parts, in which sizes, and where the size may change."""

import torch
from torch.fx import GraphModule, Node

from memfit.losses import loss_of
from memfit.micro_batches import parts
from memfit.overwriting import changes_its_input
from memfit.program import call_with
from memfit.splitting import worked_out_anew
from planner.capture import TrainingGraph, without_dropout
from planner.profile import Step
from planner.sample import Batch
from planner.timeline import gradient_flow, readers_of

TRIED = 4  # samples that are sent through at once, and in two parts
NEAR = 4  # operations: about a block's depth
SMALLEST_DIFFERENCE = 1e-6  # of the gradient's norm: far above rounding of float64, far below what samples that touch one another change
ROUNDING = 1e-3  # the same for a program that float64 does not run through


def part_sizes(graph: TrainingGraph, batch: Batch, loss: str) -> tuple[int, ...]:
    """Samples at a time: all of them, and then a half, a quarter, ... where parts' gradients add up; tried on `TRIED` samples."""
    return halvings(batch.samples) if batch.samples > 1 and _add_up(graph, batch, loss) else (batch.samples,)


def halvings(samples: int) -> tuple[int, ...]:
    """All samples, and then a half, a quarter, ... of them, rounded up, down to one."""
    sizes = [samples]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return tuple(sizes)


def _add_up(graph: TrainingGraph, batch: Batch, loss: str) -> bool:
    some = batch.first(min(TRIED, batch.samples))
    try:
        return _agree(graph, some.double(), loss, torch.float64, SMALLEST_DIFFERENCE)
    except (RuntimeError, ValueError, IndexError):  # it names a type, or is for one batch size alone
        pass
    try:
        return _agree(graph, some, loss, None, ROUNDING)
    except (RuntimeError, ValueError, IndexError):
        return False


def _agree(graph: TrainingGraph, batch: Batch, loss: str, dtype: torch.dtype | None, most: float) -> bool:
    module = without_dropout(graph.rewritten(graph.exact_recipe(loss))).to(dtype)
    whole, summed = _gradient(module, batch, loss, None), _gradient(module, batch, loss, -(-batch.samples // 2))
    difference = sum(float((g - summed[name]).double().square().sum()) for name, g in whole.items() if name in summed)
    norm = sum(float(g.double().square().sum()) for g in whole.values())
    return whole.keys() == summed.keys() and difference <= most**2 * norm


def _gradient(module: GraphModule, batch: Batch, loss: str, micro_batch: int | None) -> dict[str, torch.Tensor]:
    for inputs, targets, weight in parts(batch.inputs, batch.targets, loss, micro_batch):
        (loss_of(loss, call_with(module, inputs), targets) * weight).backward()
    gradient = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return gradient


def splits(graph: TrainingGraph, whole: Step) -> tuple[str, ...]:
    """Operations whose result is all that later ones read of what is before them, weights included, but for masks and the like, which may
    be worked out anew; and after which some weight is read: it is for their gradients that the rest runs at once.

    Where several are near one another, the one with the smallest result.
    """
    order = {node: i for i, node in enumerate(graph.operations)}
    every = [*graph.operations, graph.module.graph.output_node()]
    readers = readers_of(whole)
    last_read = max((max(reads) for reads in readers.values()), default=0)
    anew, passes = worked_out_anew(graph.module), gradient_flow(whole, frozenset(readers))
    crossing = [[size for size, born, last_use in whole.storages if born <= i < last_use and passes[born]] for i in range(len(every))]
    found = [
        i
        for node, i in order.items()
        if i < last_read
        and isinstance(node.meta.get("val"), torch.Tensor)
        and len(node.meta["val"].shape) > 0
        and {source for later in every[i + 1 :] for source in _read_before(later, order, i) if later not in anew} - anew == {node}
        and not any(min(reads) <= i < max(reads) for reads in readers.values())
        and not any(changes_its_input(user, graph.module) for user in node.users)
        and len(crossing[i]) == 1
    ]

    def beaten(i: int) -> bool:
        near = (j for j in found if j != i and abs(j - i) <= NEAR)
        return any(crossing[j] < crossing[i] or (crossing[j] == crossing[i] and j > i) for j in near)

    return tuple(graph.operations[i].name for i in found if not beaten(i))


def _read_before(later: Node, order: dict[Node, int], i: int) -> list[Node]:
    """Tensors up to operation `i` that a later operation reads. (Sizes are worked out anew.)"""
    earlier = (source for source in later.all_input_nodes if order.get(source, i + 1) <= i)
    return [source for source in earlier if isinstance(source.meta.get("val"), torch.Tensor)]
