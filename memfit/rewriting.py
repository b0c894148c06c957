"""Rewrite a training module's graph so that it holds what the recipe says.

Every operation of a known family becomes memfit's own, which holds only what its trained parameters need; one node before the
first of its holders makes a form, and all of them share it.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from memfit.arguments import arguments
from memfit.chains import HoldSources, chain_of
from memfit.forms import Bitmap, form_from_settings
from memfit.operators.again import MASK, REPEATED, Again
from memfit.operators.attention import Attention, DroppedAttention
from memfit.operators.conv import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, ConvArguments, convolution
from memfit.operators.embedding import embedding
from memfit.operators.folded import convolution_before_norm, norm_after_convolution
from memfit.operators.held import Hold
from memfit.operators.linear import TRANSPOSED_LINEAR, linear
from memfit.operators.norm import frozen_batch_norm
from memfit.operators.pointwise import MaskedDropout, Rectifier, rectified
from memfit.operators.pooling import adaptive_average_pool, average_pool, max_pool
from memfit.overwriting import (
    HARDTANHS,
    LEAKY_RELUS,
    RECTIFIERS,
    RELUS,
    folded_norm,
    is_changed,
    is_frozen_batch_norm,
    overwritable,
    own_gradient,
    write_over,
)
from memfit.program import fingerprint, per_axis
from memfit.recipe import FOLD, RECOMPUTE, HeldForm, Recipe

aten = torch.ops.aten

DROPPING = (nn.modules.dropout._DropoutNd, MaskedDropout, Attention, DroppedAttention)  # modules that draw random numbers in training

HELD = "memfit_held_"
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
MAX_POOLINGS = {aten.max_pool1d.default: 1, aten.max_pool2d.default: 2, aten.max_pool3d.default: 3}
POOLINGS: dict[Any, int] = {
    **MAX_POOLINGS,
    aten.avg_pool1d.default: 1,
    aten.avg_pool2d.default: 2,
    aten.avg_pool3d.default: 3,
    aten.adaptive_avg_pool1d.default: 1,
    aten.adaptive_avg_pool2d.default: 2,
    aten.adaptive_avg_pool3d.default: 3,
}
OVERWRITES = "memfit_overwrites"  # of a node's meta: the argument it may write its result over, where nobody holds anything


def makes_held(node: Node) -> bool:
    """Whether a node of a rewritten graph makes what later operations hold."""
    return node.op == "call_module" and str(node.target).startswith(HELD)


def holds_its_input(module: GraphModule, node: Node) -> bool:
    """Whether the operation is one whose input may be held in a form: a convolution, linear or frozen batch norm on batches."""
    if node.target in CONVOLUTIONS:
        x = node.args[0]
        value = x.meta.get("val") if isinstance(x, Node) else None
        return value is None or value.dim() == CONVOLUTIONS[node.target] + 2
    return node.target in (aten.linear.default, TRANSPOSED_LINEAR) or is_frozen_batch_norm(node)


def repeated_inputs(node: Node) -> tuple[Node, ...]:
    """The activations that an operation would hold if it works itself out again for its gradient; () for one that cannot."""
    if drops_out(node):
        values: dict[str, Any] = dict(zip(("query", "key", "value", MASK), node.args, strict=True))
        names = REPEATED[aten.scaled_dot_product_attention.default]
    elif node.op == "call_function" and node.target in REPEATED:
        values, names = arguments(node), REPEATED[node.target]
    else:
        return ()
    inputs = tuple(values[name] for name in names)
    others = [value for name, value in values.items() if name not in names]
    computed = ("call_function", "call_module", "placeholder")
    if not all(isinstance(x, Node) and x.op in computed and isinstance(x.meta.get("val"), Tensor) for x in inputs):
        return ()
    if any(isinstance(value, Node) and not isinstance(value.meta.get("val"), Tensor) for value in pytree.tree_leaves(others)):
        return ()  # sizes that depend on the batch
    axes = inputs[0].meta["val"].dim()
    if node.target is aten.softmax.int and values["dim"] % axes == 0:
        return ()
    if "normalized_shape" in values and len(values["normalized_shape"]) >= axes:
        return ()
    return () if "query" in values and axes < 3 else inputs


def drops_out(node: Node) -> bool:
    """Whether the operation is attention with dropout."""
    module = node.graph.owning_module
    return node.op == "call_module" and module is not None and type(module.get_submodule(str(node.target))) is Attention


def may_hold_bits(module: GraphModule, node: Node) -> bool:
    """Whether the operation can do with one bit an element, or max pooling with a byte a window."""
    if node.target in LEAKY_RELUS:
        return float(arguments(node)["negative_slope"]) > 0
    if _is_pooling_of_batches(node) and node.target in MAX_POOLINGS:
        return prod(_window(node)[0]) <= 256
    return node.target in RECTIFIERS or (node.op == "call_module" and type(module.get_submodule(str(node.target))) is nn.Dropout)


def holds_its_result(module: GraphModule, node: Node) -> bool:
    """Whether the operation is a rectifier that may hold its result, which is there for the next operation anyway."""
    if node.target not in RECTIFIERS or is_changed(node, module):
        return False
    return node.target not in LEAKY_RELUS or float(arguments(node)["negative_slope"]) > 0


def rewrite(module: GraphModule, recipe: Recipe) -> GraphModule:
    """Rewrite `module`, from `training_module`, in place.

    Raises:
        ValueError: the recipe was made for another program, or names what is not there.
    """
    if fingerprint(module) != recipe.graph:
        raise ValueError("the plan was made for another program than this one: load the checkpoint that memfit wrote, unchanged")
    nodes = {node.name: node for node in module.graph.nodes}
    masks = set(recipe.masks)
    over = {node.name: list(node.args).index(x) for node in nodes.values() if (x := overwritable(node)) is not None}
    own_gradients = {node.name for node in nodes.values() if own_gradient(node)}
    by_result = {node.name for node in nodes.values() if holds_its_result(module, node)}
    by_rows = {module.get_parameter(name) for name in recipe.rows}
    held_by: dict[str, dict[str, Node]] = {}  # for each holder, by the value that is held
    folded = {nodes[each.value]: _foldable(nodes[each.value], each) for each in recipe.forms if each.technique == FOLD}
    holds = [  # all chains, before the first rewriting
        (form_plan, *_hold(module, nodes, form_plan)) for form_plan in recipe.forms if form_plan.technique != FOLD
    ]
    for form_plan, hold, tensors in holds:
        first = next(node for node in module.graph.nodes if node.name in form_plan.holders)
        with module.graph.inserting_before(first):
            module.add_module(f"{HELD}{form_plan.value}_{first.name}", hold)
            held = module.graph.call_module(f"{HELD}{form_plan.value}_{first.name}", tensors)
        for holder in form_plan.holders:
            held_by.setdefault(holder, {})[form_plan.value] = held
    for node in list(nodes.values()):
        forms, over_gradient = held_by.get(node.name, {}), node.name in own_gradients
        if node in folded:
            _use_before_norm(node, folded[node], forms.pop(node.all_input_nodes[0].name, None))
        elif node in folded.values():
            _use_after_convolution(node)
        elif holds_its_input(module, node):
            _use_own(node, forms.pop(node.all_input_nodes[0].name, None), over_gradient)
        elif drops_out(node) and repeated_inputs(node):
            _use_dropped_attention(module, node, forms)
            masks.discard(node.name)
        elif repeated_inputs(node) and (forms or node.name in masks):
            _use_again(module, node, forms)
            masks.discard(node.name)
        elif _is_pooling_of_batches(node):
            _use_pooling(node, small=node.name in masks)
            masks.discard(node.name)
        elif node.target is aten.embedding.default and _parameter(module, node) in by_rows:
            values = arguments(node)
            _call(node, embedding, (values["weight"], values["indices"], values["padding_idx"]))
        elif node.name in masks and not may_hold_bits(module, node):
            raise ValueError(f"the plan holds bits for {node.name}, which needs more")
        elif node.name in by_result or (node.target in RECTIFIERS and node.name in masks):
            _use_rectified(node, node.name in masks, over_gradient, forms.pop(node.name, None))
            masks.discard(node.name)
        elif node.name in masks:
            masks.remove(node.name)
            _use_masked_dropout(module, node)
        if node.name in over:
            node.meta[OVERWRITES] = over[node.name]
    for name in recipe.in_place:
        if name not in over:
            raise ValueError(f"the plan writes the result of {name} over what it reads, which others need")
        write_over(nodes[name], over[name])
    unknown = [f"{value} for {holder}" for holder, held in held_by.items() for value in held]
    if unknown or masks:
        raise ValueError(f"the plan names {', '.join([*unknown, *masks])}, which cannot be held as it says")
    trained = set(recipe.trained)
    for name, parameter in module.named_parameters():  # a tied one under its first name
        parameter.requires_grad_(name in trained and parameter.is_floating_point())
    module.graph.lint()
    module.recompile()
    return module


def _hold(module: GraphModule, nodes: dict[str, Node], form_plan: HeldForm) -> tuple[nn.Module, tuple[Node, ...]]:
    """What holds an activation for its holders, and the nodes whose outputs it takes."""
    value = nodes[form_plan.value]
    if form_plan.technique != RECOMPUTE:
        form = form_from_settings(form_plan.technique, form_plan.settings)
        if form_plan.value not in form_plan.holders:
            return Hold(form), (value,)
        if not isinstance(form, Bitmap) or value.target not in RELUS:
            raise ValueError(f"the plan has {form_plan.value} share {form_plan.technique}, which does not tell where its gradient passes")
        return Hold(form), (value.all_input_nodes[0],)  # made just before it, which may write over its input
    chain, tensors = chain_of(value, [nodes[name] for name in form_plan.settings["sources"]])
    return HoldSources(chain), tuple(tensors)


def _foldable(convolution: Node, form_plan: HeldForm) -> Node:
    """The norm that a recipe folds into a convolution."""
    norm = folded_norm(convolution)
    if norm is None or form_plan.holders != (norm.name,):
        raise ValueError(f"the plan folds {', '.join(form_plan.holders)} into {convolution.name}, which does not lead to it alone")
    return norm


def _parameter(module: GraphModule, embedding: Node) -> nn.Parameter | None:
    """The table that an embedding reads."""
    table = embedding.args[0]
    return dict(module.named_parameters(remove_duplicate=False)).get(str(table.target)) if isinstance(table, Node) else None


def _use_own(node: Node, held: Node | None, over_gradient: bool) -> None:
    values = arguments(node)
    if node.target in CONVOLUTIONS:
        _call(node, convolution, (values["input"], values["weight"], values["bias"], conv_arguments(node), held))
    elif node.target is aten.linear.default:
        _call(node, linear, (values["input"], values["weight"], values["bias"], held))
    elif node.target is TRANSPOSED_LINEAR:
        _call(node, linear, (values["input"], values["weight"], values["bias"], held), transposed=True)
    else:
        tensors = [values[name] for name in NORM_TENSORS]
        _call(node, frozen_batch_norm, (values["input"], *tensors, values["eps"], held), over_gradient=over_gradient)


def _use_before_norm(node: Node, norm: Node, held: Node | None) -> None:
    values, of_norm = arguments(node), arguments(norm)
    with node.graph.inserting_before(node):  # the norm's own may come later
        tensors = [
            node.graph.get_attr(str(value.target)) if isinstance(value, Node) else value
            for value in (of_norm[name] for name in NORM_TENSORS)
        ]
    _call(
        node,
        convolution_before_norm,
        (values["input"], values["weight"], values["bias"], *tensors, of_norm["eps"], conv_arguments(node), held),
    )


def _use_after_convolution(node: Node) -> None:
    values = arguments(node)
    _call(node, norm_after_convolution, (values["input"], *(values[name] for name in NORM_TENSORS), values["eps"]))


def conv_arguments(node: Node) -> ConvArguments:
    """Settings of a convolution of a program."""
    values, spatial = arguments(node), CONVOLUTIONS[node.target]
    stride, padding, dilation = (per_axis(values[name], spatial) for name in ("stride", "padding", "dilation"))
    output_padding = per_axis(values["output_padding"], spatial) if node.target in TRANSPOSED_CONVOLUTIONS else None
    return ConvArguments(stride, padding, dilation, values["groups"], output_padding)


def _use_again(module: GraphModule, node: Node, held: dict[str, Node]) -> None:
    values, inputs = arguments(node), repeated_inputs(node)
    samples = REPEATED[node.target]
    others = [name for name, value in values.items() if name not in samples and isinstance(value, Node)]
    constants = {name: value for name, value in values.items() if name not in samples and name not in others}
    name = f"memfit_{node.name}"
    module.add_module(name, Again(node.target, (*samples, *others), len(samples), constants))
    node.op, node.target = "call_module", name
    node.args, node.kwargs = (*inputs, *(values[each] for each in others), *(held.pop(x.name, None) for x in inputs)), {}


def _use_dropped_attention(module: GraphModule, node: Node, held: dict[str, Node]) -> None:
    attention = module.get_submodule(str(node.target))
    assert isinstance(attention, Attention)
    module.set_submodule(str(node.target), DroppedAttention(attention))
    query, key, value, _ = (str(x) for x in node.args)  # a node's text is its name
    node.args = (*node.args, None, *(held.pop(x, None) for x in (query, key, value)))


def _is_pooling_of_batches(node: Node) -> bool:
    axes = POOLINGS.get(node.target)
    x = node.args[0] if axes is not None and node.args else None
    value = x.meta.get("val") if isinstance(x, Node) else None
    return axes is not None and value is not None and value.dim() == axes + 2


def _window(node: Node) -> tuple[tuple[int, ...], ...]:
    """Kernel, stride, padding and dilation of a max pooling, a number an axis each."""
    values = arguments(node)

    def each(name: str) -> tuple[int, ...]:
        given = values[name] if values[name] != [] else values["kernel_size"]  # without a stride of its own, a window is one step
        return tuple(per_axis(given, POOLINGS[node.target]))

    return each("kernel_size"), each("stride"), each("padding"), each("dilation")


def _use_pooling(node: Node, small: bool) -> None:
    values, axes = arguments(node), POOLINGS[node.target]
    if node.target in MAX_POOLINGS:
        _call(node, max_pool, (values["self"], *_window(node), bool(values["ceil_mode"])), small=small)
    elif "output_size" in values:
        _call(node, adaptive_average_pool, (values["self"], per_axis(values["output_size"], axes)))
    else:
        sizes = (per_axis(values[name], axes) if values[name] != [] else [] for name in ("kernel_size", "stride", "padding"))
        rest = (values["ceil_mode"], values["count_include_pad"], values.get("divisor_override"))
        _call(node, average_pool, (values["self"], *sizes, *rest))


def _use_masked_dropout(module: GraphModule, node: Node) -> None:
    dropout = module.get_submodule(str(node.target))
    assert isinstance(dropout, nn.Dropout)
    module.set_submodule(str(node.target), MaskedDropout(dropout.p))


def _use_rectified(node: Node, bits: bool, over_gradient: bool, held: Node | None) -> None:
    values = arguments(node)
    x = values.get("self", values.get("input"))
    if node.target in RELUS:
        rectifier = Rectifier(0.0)
    elif node.target in HARDTANHS:
        rectifier = Rectifier(float(values.get("min_val", 0)), float(values.get("max_val", 6)))
    else:
        rectifier = Rectifier(0.0, slope=float(values["negative_slope"]))
    settings = {"bits": bits, "over_input": RECTIFIERS[node.target], "over_gradient": over_gradient}
    _call(node, rectified, (x, rectifier), **settings, **({} if held is None else {"held": held}))


def _call(node: Node, function: Callable[..., Tensor], args: tuple[Any, ...], **kwargs: bool | Node) -> None:
    node.target, node.args, node.kwargs = function, args, dict(kwargs)
