"""A module in segments: what runs up to an operation, from there up to another one, and so on.

All segments but the last run without autograd, some samples at a time or all, and once more for their gradient: so only what is between
two of them is held, and the activations of one. Early layers have large activations and small weights, which a few samples at a time
suit; late layers have small activations and large weights, whose gradients come once, for the whole batch, and can be applied at once.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from memfit.arguments import arguments
from memfit.operators.linear import linear
from memfit.overwriting import IN_PLACE, write_over
from memfit.rewriting import DROPPING, OVERWRITES, makes_held

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a module, which takes the value that the segment before it returns, if there is one, and the module's inputs.

    Attributes:
        ahead: for a pass without autograd: nothing is made to hold, and no value outlives its last use.
        again: the same, for the gradient: its result is not worked out where nothing but that is made of it.
        trains: whether a parameter of it, or of a segment before it, trains.
        draws: whether it draws random numbers.
    """

    ahead: GraphModule
    again: GraphModule
    trains: bool
    draws: bool


class Segments:
    """The segments of a module; they share its parameters and submodules.

    Attributes:
        divided: all but the last.
        last: takes the value before it and the inputs, returns what the module returns, as a flat tuple.

    Raises:
        ValueError: operations after a split read more than its value of what is before it.
    """

    def __init__(self, module: GraphModule, splits: tuple[str, ...]) -> None:
        nodes = {node.name: node for node in module.graph.nodes}
        missing = [name for name in splits if name not in nodes]
        if missing:
            raise ValueError(f"the plan divides the model after {', '.join(missing)}, which it does not have")
        ends, output = [nodes[name] for name in splits], module.graph.output_node()
        divided, trains = list[Segment](), False
        for start, end in pairwise([None, *ends]):
            assert end is not None
            again = GraphModule(module, _part(module.graph, end, [end], start))
            trains = trains or any(parameter.requires_grad for parameter in again.parameters())
            ahead = GraphModule(module, _part(module.graph, end, [end], start, holding=False))
            _leave_out_result(again)
            divided.append(Segment(ahead, again, trains, _draws(again)))
        self.divided = tuple(divided)
        self.last = GraphModule(module, _part(module.graph, output, list(pytree.tree_leaves(output.args[0])), ends[-1]))
        computed, anew = set[str](), {node.name for node in worked_out_anew(module)}
        for name, before, after in zip(splits, self.divided, [*(each.again for each in divided[1:]), self.last], strict=True):
            computed |= _computed(before.again.graph) - anew
            if shared := computed & _computed(after.graph):
                raise ValueError(f"the plan divides the model after {name}, where later operations need {', '.join(sorted(shared))} too")
        self._out_spec = module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]

    def outputs(self, flat: Any) -> Any:
        """What the module returns, from what `last` returned."""
        return pytree.tree_unflatten(list(flat), self._out_spec)


def _part(whole: Graph, end: Node, results: list[Any], boundary: Node | None, holding: bool = True) -> Graph:
    """The operations that lead to `end`, from the inputs and the boundary; without `holding` those that hold get None instead,
    and whatever is read last is written over.
    """
    needed, waiting = set(), [end]
    while waiting:
        node = waiting.pop()
        if node not in needed and node is not boundary and (holding or not makes_held(node)):
            needed.add(node)
            waiting += node.all_input_nodes
    graph, copies = Graph(), dict[Node, Node]()
    if boundary is not None:
        copies[boundary] = graph.placeholder(boundary.name)
    for node in whole.nodes:
        if node.op == "placeholder" or (node in needed and node.op != "output"):
            copies[node] = graph.node_copy(node, lambda source: copies.get(source))
            over = node.meta.get(OVERWRITES)
            if not holding and over is not None and node.target not in IN_PLACE.values() and node.args[over] is not boundary:
                write_over(copies[node], over)
    graph.output(tuple(copies[each] if isinstance(each, Node) else each for each in results))
    return graph


class _Sum(torch.autograd.Function):
    """`a + b` of which nobody reads the result."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return a.new_empty(()).expand(a.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad


def _valueless_sum(a: Tensor, b: Tensor) -> Tensor:
    result: Tensor = _Sum.apply(a, b)  # type: ignore[no-untyped-call]
    return result


def _leave_out_result(segment: GraphModule) -> None:
    """Let linear layers and sums at the end, which only the result is made of, be no more than their place in a backward."""
    waiting = list(segment.graph.output_node().all_input_nodes)
    while waiting:
        node = waiting.pop()
        if len(node.users) > 1:
            continue
        if node.target in (aten.add.Tensor, aten.add_.Tensor) and _alike(node):
            node.target = _valueless_sum
            waiting += node.all_input_nodes
        elif node.target is linear:
            node.kwargs = {**node.kwargs, "valueless": True}
        elif node.op == "call_module" and getattr(segment.get_submodule(str(node.target)), "p", None) == 0:
            waiting += node.all_input_nodes
    segment.recompile()


def _alike(node: Node) -> bool:
    """Whether a sum is of two tensors of its own shape and type."""
    values = [value for each in (node, *node.args) if isinstance(each, Node) and isinstance(value := each.meta.get("val"), Tensor)]
    return len(values) == 3 and not node.kwargs and len({(str(value.shape), value.dtype) for value in values}) == 1


def worked_out_anew(module: GraphModule) -> set[Node]:
    """Operations that every segment may do for itself: those of inputs, buffers and sizes alone, such as attention masks are made by."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    found = set[Node]()
    for node in module.graph.nodes:
        if (
            node.op == "placeholder"
            or (node.op == "get_attr" and node.target not in parameters)
            or (node.op == "call_function" and not _changes(node) and not _seeded(node) and found.issuperset(node.all_input_nodes))
        ):
            found.add(node)
    return found


def _changes(node: Node) -> bool:
    """Whether an operation writes into what it reads, in the model itself."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable and node.target not in IN_PLACE.values()


def _draws(module: GraphModule) -> bool:
    dropping = (child for child in module.modules() if isinstance(child, DROPPING))
    return any(map(_seeded, module.graph.nodes)) or any(getattr(child, "p", None) != 0 for child in dropping)


def _seeded(node: Node) -> bool:
    """Whether an operation of torch's own draws random numbers: attention is called one that does, with or without dropout."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    return node.target is not aten.scaled_dot_product_attention.default or bool(arguments(node)["dropout_p"])


def _computed(graph: Graph) -> set[str]:
    """Names of what a graph computes of the samples; sizes may be worked out twice."""
    return {
        node.name for node in graph.nodes if node.op in ("call_function", "call_module") and isinstance(node.meta.get("val"), torch.Tensor)
    }


def slices(tensors: Iterable[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    """All tensors by ranges of so many samples."""
    tensors = tuple(tensors)
    return [tuple(tensor[start : start + size] for tensor in tensors) for start in range(0, tensors[0].shape[0], size)]


def backward_from(edge: GradientEdge, gradient: list[Tensor]) -> None:
    """Backward from a value of which nothing but its place in the graph is there any more.

    Args:
        gradient: the value's, alone; it is taken out, so that it lives no longer than in a backward of the whole module.
    """
    at, no_gradient = edge.output_nr, gradient[0].new_zeros(()).expand(gradient[0].shape)
    edge.node.register_prehook(
        lambda gradients: (*gradients[:at], gradient.pop(), *gradients[at + 1 :])
    )  # without the edge, which holds it
    torch.autograd.backward(edge, no_gradient)


def joined(values: Iterable[Tensor], samples: int) -> Tensor:
    """Values of some samples each as one tensor, made as they come."""
    whole, start = None, 0
    for value in values:
        if value.shape[0] == samples:
            return value
        if whole is None:
            whole = value.new_empty((samples, *value.shape[1:]))
        whole[start : start + value.shape[0]] = value
        start += value.shape[0]
        del value  # or it would be there while the next is made
    assert whole is not None
    return whole


@dataclass(frozen=True, slots=True)
class RandomState:
    """Of the random numbers of the processor and, where there is one, of the current CUDA device."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls) -> "RandomState":
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None)

    def set(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same numbers once more inside; after it those that would have come without."""
        later = RandomState.now()
        self.set()
        try:
            yield
        finally:
            later.set()
