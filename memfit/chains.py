"""Work an activation out again from others that are held, instead of holding it.

A chain is the run of operations from its sources to the activation, as the program has them. Its operations treat the samples of
a batch apart, so a backward works out a few samples at a time and the whole activation never exists twice.
"""

import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from memfit.forms import Held
from memfit.operators.conv import CONVOLUTIONS
from memfit.operators.held import HeldTensor
from memfit.operators.linear import TRANSPOSED_LINEAR

aten = torch.ops.aten

PRODUCTS = (*CONVOLUTIONS, aten.linear.default, TRANSPOSED_LINEAR)
VIEWS = (
    *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.transpose.int, aten.permute.default),
    *(aten.split.Tensor, operator.getitem),
)
REPEATABLE = frozenset(
    (
        *PRODUCTS,
        *(aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default, aten.relu6_.default),
        *(aten.leaky_relu.default, aten.leaky_relu_.default, aten.elu.default, aten.elu_.default, aten.gelu.default, aten.mish.default),
        *(aten.silu.default, aten.silu_.default, aten.hardswish.default, aten.hardswish_.default, aten.softplus.default),
        *(aten.sigmoid.default, aten.hardsigmoid.default, aten.hardsigmoid_.default, aten.tanh.default, aten.softmax.int),
        *(aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default, aten.batch_norm.default),
        *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.add_.Tensor, aten.mul_.Tensor),
        *(aten.max_pool1d.default, aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default, aten.cat.default),
        *(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
        *(aten.max_pool3d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool3d.default),
        *(*VIEWS, aten.contiguous.default, aten.scaled_dot_product_attention.default),
    )
)


def is_batch_size(node: Node) -> bool:
    """Whether a node tells how many samples there are, of a model input."""
    return bool(node.target is aten.sym_size.int and node.args[1] == 0 and node.all_input_nodes[0].op == "placeholder")


def repeatable(node: Node) -> bool:
    """Whether the operation gives the same again, by samples, and changes nothing that outlives the step."""
    if node.op != "call_function" or node.target not in REPEATABLE:
        return False
    return node.target is not aten.batch_norm.default or node.args[5] is False  # with batch statistics, samples touch one another


def steps(value: Node, sources: Iterable[Node]) -> list[Node]:
    """The operations that lead from the sources (and parameters) to a value, in order.

    Raises:
        ValueError: one of them cannot be repeated.
    """
    found: set[Node] = set()
    ends = set(sources)
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if node in found or node in ends or node.op == "get_attr" or is_batch_size(node):
            continue
        if not repeatable(node):
            raise ValueError(f"{node.name} cannot be worked out again")
        found.add(node)
        waiting += node.all_input_nodes
    return [node for node in value.graph.nodes if node in found]


class Chain:
    """Restores an activation from its sources and parameters."""

    def __init__(self, module: GraphModule, sources: int) -> None:
        self.module, self.sources = module, sources

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int) -> Tensor:
        """Samples `start` to `stop`. Held: the sources, whole, and then the parameters."""
        with torch.no_grad():
            result: Tensor = self.module(*(source[start:stop] for source in held[: self.sources]), *held[self.sources :])
        return result


class HoldSources(nn.Module):
    """Holds what a chain starts from; these tensors are held anyway, so it takes no bytes."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, *tensors: Tensor) -> HeldTensor | None:
        if not torch.is_grad_enabled():
            return None
        return HeldTensor(self.chain, tuple(tensor.detach() for tensor in tensors))


def chain_of(value: Node, sources: Sequence[Node]) -> tuple[Chain, list[Node]]:
    """The chain of a value, and the nodes whose outputs it takes: the sources, then the parameters.

    Raises:
        ValueError: an operation between them cannot be repeated.
    """
    nodes = steps(value, sources)
    parameters = list(dict.fromkeys(node for each in nodes for node in each.all_input_nodes if node.op == "get_attr"))
    graph = Graph()
    copies: dict[Node, Node] = {node: graph.placeholder(node.name) for node in (*sources, *parameters)}
    sizes = {source for node in nodes for source in node.all_input_nodes if is_batch_size(source)}
    if sizes:  # those of the samples that are worked out
        copies |= dict.fromkeys(sizes, graph.call_function(aten.sym_size.int, (copies[sources[0]], 0)))
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[value])
    return Chain(GraphModule(nn.Module(), graph), len(sources)), [*sources, *parameters]
