"""Which operations may write their result over what they read, and in backward their input's gradient over their result's.

A tensor may be overwritten by the operation that reads it last, where no other holds it for backward. What reads it follows from the
graph alone; who holds it is the plan's to say.
"""

from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from memfit.operators.conv import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from memfit.operators.linear import TRANSPOSED_LINEAR

aten = torch.ops.aten

RELUS = {aten.relu.default: False, aten.relu_.default: True}
HARDTANHS = {aten.hardtanh.default: False, aten.hardtanh_.default: True, aten.relu6.default: False, aten.relu6_.default: True}
LEAKY_RELUS = {aten.leaky_relu.default: False, aten.leaky_relu_.default: True}
# In place or not: all of them.
RECTIFIERS: dict[Any, bool] = {**RELUS, **HARDTANHS, **LEAKY_RELUS}
# Of the same shape as what they read, and torch's own that write over it.
IN_PLACE: dict[Any, Any] = {
    aten.add.Tensor: aten.add_.Tensor,
    aten.gelu.default: aten.gelu_.default,
    aten.silu.default: aten.silu_.default,
    aten.mish.default: aten.mish_.default,
    aten.elu.default: aten.elu_.default,
    aten.hardswish.default: aten.hardswish_.default,
    aten.hardsigmoid.default: aten.hardsigmoid_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
    aten.tanh.default: aten.tanh_.default,
}
# Operations whose backward makes a new tensor for the gradient of their first input, and hands it to no other.
MAKING_GRADIENTS = frozenset(
    (
        *RECTIFIERS,
        *(target for target in IN_PLACE if target is not aten.add.Tensor),
        *(*CONVOLUTIONS, aten.linear.default, TRANSPOSED_LINEAR, aten.batch_norm.default),
        *(aten.layer_norm.default, aten.group_norm.default, aten.softplus.default, aten.softmax.int),
        *(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
    )
)
# Operations whose result is a new tensor, all of a storage.
MAKING_TENSORS = frozenset(
    (
        *(target for target, in_place in RECTIFIERS.items() if not in_place),
        *(*IN_PLACE, *CONVOLUTIONS, aten.linear.default, TRANSPOSED_LINEAR),
        *(aten.batch_norm.default, aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default, aten.cat.default),
        *(aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.softplus.default, aten.softmax.int),
        *(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
    )
)


def is_frozen_batch_norm(node: Node) -> bool:
    return node.target is aten.batch_norm.default and node.args[5] is False


def folded_norm(node: Node) -> Node | None:
    """The frozen batch norm that alone reads the result of a convolution on batches, where both can have one backward; else None.

    Not of numbers of two bytes: sums over a channel would be rounded to them before the norm's mean is taken off.
    """
    if node.target not in CONVOLUTIONS or node.target in TRANSPOSED_CONVOLUTIONS or len(node.users) != 1:
        return None
    (norm,) = node.users
    if not is_frozen_batch_norm(norm) or norm.args[0] is not node:
        return None
    value, weights = node.meta.get("val"), (node.args[1], norm.args[1])
    fits = isinstance(value, Tensor) and value.dim() == CONVOLUTIONS[node.target] + 2 and value.dtype.itemsize >= 4
    return norm if fits and all(isinstance(each, Node) and each.op == "get_attr" for each in weights) else None


def aliases(node: Node) -> set[Node]:
    """The operation and those whose results may be its storage: views of it, and what writes into it."""
    found, waiting = set[Node](), [node]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting += [user for user in each.users if user.op != "output" and _may_return(user)]
    return found


def _may_return(node: Node) -> bool:
    """Whether an operation's result may be the storage of what it reads."""
    if isinstance(node.target, torch._ops.OpOverload):
        return any(each.alias_info is not None for each in node.target._schema.returns)
    return True


def changes_its_input(node: Node, module: GraphModule) -> bool:
    """Whether an operation writes into a tensor that it is given."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if isinstance(node.target, torch._ops.OpOverload):
        return any(a.alias_info is not None and a.alias_info.is_write for a in node.target._schema.arguments)
    return False


def is_changed(node: Node, module: GraphModule) -> bool:
    """Whether another operation may write into what the operation returns."""
    return any(changes_its_input(user, module) for each in aliases(node) for user in each.users)


def overwritable(node: Node) -> Node | None:
    """The operation's input that it may write its result over, if nobody holds that for backward; None where there is none.

    Args:
        node: of a module from `training_module`, before any rewriting.
    """
    if not (is_frozen_batch_norm(node) or RECTIFIERS.get(node.target) is False or node.target in IN_PLACE):
        return None
    read = node.args[:2] if node.target is aten.add.Tensor and not node.kwargs else node.args[:1]
    found = [x for x in read if isinstance(x, Node) and _ends_at(x, node) and _alike(x, node)]
    return min(found, key=lambda x: len(x.users), default=None)  # who has other readers is more likely to be held by them


def _ends_at(x: Node, node: Node) -> bool:
    """Whether `x` made a storage of its own that nothing reads after the operation."""
    if x.target not in MAKING_TENSORS or sum(each is x for each in node.args) != 1:
        return False
    readers = {user for each in aliases(x) for user in each.users}
    after = dropwhile(lambda each: each is not node, node.graph.nodes)
    return not any(each in readers for each in after if each is not node)


def _alike(x: Node, node: Node) -> bool:
    one, other = x.meta.get("val"), node.meta.get("val")
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.dtype != other.dtype:
        return False
    return [str(size) for size in one.shape] == [str(size) for size in other.shape]  # sizes may be symbols


def own_gradient(node: Node) -> bool:
    """Whether the gradient that comes to the operation is a tensor that nobody else has, so its backward may write over it: one
    operation alone reads its result, and makes a new tensor for that gradient.
    """
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_function" or users[0].target not in MAKING_GRADIENTS:
        return False
    return sum(each is node for each in users[0].args) == 1 and users[0].args[0] is node


def write_over(node: Node, argument: int) -> None:
    """Let an operation of a rewritten graph write its result over that argument."""
    if node.target in IN_PLACE:
        node.target = IN_PLACE[node.target]
        node.args = (node.args[argument], *(each for at, each in enumerate(node.args) if at != argument))
    else:
        node.kwargs = {**node.kwargs, "over_input": True}
