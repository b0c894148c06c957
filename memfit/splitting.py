"""A module in two: what runs up to an operation, and what runs after it.

Up to the split a step goes through a few samples at a time, since early layers have large activations and small weights; after it
the whole batch goes at once, since late layers have small activations and large weights, whose gradients then come once and can
be applied at once.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from memfit.overwriting import IN_PLACE, write_over
from memfit.rewriting import DROPPING, OVERWRITES, makes_held


class Split:
    """The two halves of a module; they share its parameters and submodules.

    Attributes:
        before: takes the inputs, returns the value at the split.
        ahead: the same, for a pass without autograd: nothing is made to hold, and no value outlives its last use.
        after: takes that value and the inputs, returns what the module returns, as a flat tuple.
        trains_before: whether a parameter that `before` reads trains.
        draws_before: whether `before` draws random numbers.

    Raises:
        ValueError: operations after the split read more than that value of what is before it.
    """

    def __init__(self, module: GraphModule, operation: str) -> None:
        nodes = {node.name: node for node in module.graph.nodes}
        if operation not in nodes:
            raise ValueError(f"the plan divides the model after {operation}, which it does not have")
        boundary, output = nodes[operation], module.graph.output_node()
        self.before = GraphModule(module, _part(module.graph, boundary, [boundary], None))
        self.ahead = GraphModule(module, _part(module.graph, boundary, [boundary], None, holding=False))
        self.after = GraphModule(module, _part(module.graph, output, list(pytree.tree_leaves(output.args[0])), boundary))
        shared = _computed(self.before.graph) & _computed(self.after.graph)
        if shared:
            raise ValueError(f"the plan divides the model after {operation}, where later operations need {', '.join(sorted(shared))} too")
        self.trains_before = any(parameter.requires_grad for parameter in self.before.parameters())
        self.draws_before = _draws(self.before)
        self._out_spec = module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]

    def outputs(self, flat: Any) -> Any:
        """What the module returns, from what `after` returned."""
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
            if not holding and OVERWRITES in node.meta and node.target not in IN_PLACE.values():
                write_over(copies[node], node.meta[OVERWRITES])
    graph.output(tuple(copies[each] if isinstance(each, Node) else each for each in results))
    return graph


def _draws(module: GraphModule) -> bool:
    targets = (node.target for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload))
    seeded = any(torch.Tag.nondeterministic_seeded in target.tags for target in targets)
    return seeded or any(isinstance(child, DROPPING) for child in module.modules())


def _computed(graph: Graph) -> set[str]:
    """Names of what a graph computes of the samples; sizes may be worked out twice."""
    return {
        node.name for node in graph.nodes if node.op in ("call_function", "call_module") and isinstance(node.meta.get("val"), torch.Tensor)
    }


def slices(tensors: Iterable[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    """All tensors by ranges of so many samples."""
    tensors = tuple(tensors)
    return [tuple(tensor[start : start + size] for tensor in tensors) for start in range(0, tensors[0].shape[0], size)]


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
