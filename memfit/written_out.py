"""One operation for what a program writes out in several, so that it is held and worked out again as that one.

Linear layers come as products of matrices where a model keeps weights by columns, or where an export took layers apart, with the
samples' further axes flattened around them. Activation functions come as sums, products and powers. Which function that is, its
values tell, however it is written.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional

from memfit.arguments import arguments
from memfit.operators.linear import TRANSPOSED_LINEAR

aten = torch.ops.aten

PRODUCTS = (aten.addmm.default, aten.mm.default)
RESHAPINGS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
ELEMENTWISE = (
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.rsub.Scalar, aten.neg.default, aten.square.default),
    *(aten.pow.Tensor_Scalar, aten.exp.default, aten.log1p.default, aten.tanh.default, aten.erf.default, aten.sigmoid.default),
    *(aten.softplus.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.hardsigmoid.default),
)
FUNCTIONS: tuple[tuple[Any, dict[str, Any], Callable[[Tensor], Tensor]], ...] = (
    (aten.gelu.default, {"approximate": "tanh"}, lambda x: functional.gelu(x, approximate="tanh")),
    (aten.gelu.default, {}, functional.gelu),
    (aten.silu.default, {}, functional.silu),
    (aten.mish.default, {}, functional.mish),
    (aten.hardswish.default, {}, functional.hardswish),
)
LONGEST = 12  # operations of a function written out
TRIED = torch.linspace(-20.0, 20.0, 4001, dtype=torch.float64)
ALIKE = 1e-10  # of the value and one: constants are written with ten digits


def write_as_one(module: GraphModule) -> None:
    """Rewrite a program's graph in place."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in PRODUCTS:
            _product(module, node)
    order = {node: number for number, node in enumerate(module.graph.nodes)}
    for node in list(order):
        if node.op == "call_function" and node.target in (aten.mul.Tensor, aten.div.Tensor):
            _function(module, node, order)


def _product(module: GraphModule, node: Node) -> None:
    """A matrix product with a parameter, as a linear layer."""
    values = arguments(node)
    x, weight, bias = values.get("mat1", values["self"]), values["mat2"], values["self"] if "mat1" in values else None
    by_columns = _is_parameter(weight)
    if not by_columns:
        weight = _transposed(weight)
    if weight is None or not isinstance(x, Node) or values.get("alpha", 1) != 1 or values.get("beta", 1) != 1:
        return
    if bias is not None and not (_is_parameter(bias) and _tensor(module, bias).dim() == 1):
        return
    flattened = _flattened(x, node)
    target = TRANSPOSED_LINEAR if by_columns else aten.linear.default
    layer = _call(module, node, target, (x if flattened is None else flattened, weight, bias), {})
    if flattened is None:
        _replace(node, layer)
    else:
        users = list(node.users)
        layer.meta = dict(users[0].meta)
        for user in users:
            user.replace_all_uses_with(layer)
            module.graph.erase_node(user)
    _erase_unused(module, [node, *node.all_input_nodes])


def _is_parameter(node: Any) -> bool:
    return isinstance(node, Node) and node.op == "get_attr"


def _tensor(module: GraphModule, node: Node) -> Tensor:
    tensor: Tensor = operator.attrgetter(str(node.target))(module)
    return tensor


def _transposed(node: Any) -> Node | None:
    """The parameter whose transposed matrix a node is."""
    if not isinstance(node, Node) or not node.args or not _is_parameter(node.args[0]):
        return None
    swaps = (
        node.target is aten.t.default
        or (node.target is aten.permute.default and list(node.args[1]) == [1, 0])  # type: ignore[arg-type]
        or (node.target is aten.transpose.int and set(node.args[1:]) in ({0, 1}, {-2, -1}))
    )
    parameter = node.args[0]
    return parameter if swaps and isinstance(parameter, Node) else None


def _flattened(x: Node, node: Node) -> Node | None:
    """What a product's input was before its axes but the last were flattened, where the product's result gets them back."""
    source = x.args[0] if x.target in RESHAPINGS else None
    before, after = _shape(source), _shape(node)
    if not isinstance(source, Node) or before is None or after is None or len(before) < 3 or (_shape(x) or [""])[-1] != before[-1]:
        return None
    wanted = [*before[:-1], after[-1]]
    return source if node.users and all(user.target in RESHAPINGS and _shape(user) == wanted for user in node.users) else None


def _shape(node: Any) -> list[str] | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return [str(size) for size in value.shape] if isinstance(value, Tensor) else None  # sizes may be symbols


def _function(module: GraphModule, node: Node, order: dict[Node, int]) -> None:
    """An activation function that ends in a product, as itself. `order`: the place of every operation it may be made of."""
    for x, region in _regions(node, order):
        values = _values(x, region)
        for target, settings, function in FUNCTIONS:
            truth = function(TRIED)
            if values is not None and bool(((values - truth).abs() <= ALIKE * (1 + truth.abs())).all()):
                _replace(node, _call(module, node, target, (x,), settings))
                _erase_unused(module, region)
                return


def _regions(node: Node, order: dict[Node, int]) -> Iterator[tuple[Node, list[Node]]]:
    """Runs of elementwise operations that lead to a node from one other of its shape, with that, last ones first."""
    region, cut = list[Node](), {node}
    while len(region) < LONGEST and cut and cut <= order.keys():
        latest = max(cut, key=order.__getitem__)
        if latest.target not in ELEMENTWISE or _shape(latest) != _shape(node):
            return
        region.append(latest)
        cut = (cut - {latest}) | set(latest.all_input_nodes)
        if len(cut) == 1 and _shape(next(iter(cut))) == _shape(node):
            yield next(iter(cut)), list(region)


def _values(x: Node, region: list[Node]) -> Tensor | None:
    """What a run of operations makes of the tried numbers; None where it takes more than those."""
    known: dict[Node, Tensor] = {x: TRIED}
    for each in reversed(region):
        known[each] = each.target(  # type: ignore[operator]
            *(known[a] if isinstance(a, Node) else a for a in each.args),
            **{name: known[a] if isinstance(a, Node) else a for name, a in each.kwargs.items()},
        )
    return known[region[0]]


def _call(module: GraphModule, before: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
    """A new operation, named as others of its kind."""
    with module.graph.inserting_before(before):
        return module.graph.create_node("call_function", target, args, kwargs, name=target._schema.name.split("::")[1])


def _replace(node: Node, by: Node) -> None:
    by.meta = dict(node.meta)
    node.replace_all_uses_with(by)


def _erase_unused(module: GraphModule, nodes: list[Node]) -> None:
    """Of nodes, each after those that read it."""
    for node in nodes:
        if not node.users and node.op == "call_function":
            module.graph.erase_node(node)
