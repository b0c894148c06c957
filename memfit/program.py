"""An exported program as a module that trains.

An exported graph has the training behaviour of dropout and batch norm baked in as it was at export. Here they become modules
that follow `.train()` and `.eval()`, and batch norm keeps or moves its statistics as the plan asks. What is written out in several
operations becomes the one it is. All else stays as it is.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from memfit.arguments import arguments
from memfit.operators.attention import Attention
from memfit.operators.norm import BatchNorm
from memfit.written_out import write_as_one

aten = torch.ops.aten
BatchNormMode = Literal["frozen", "batch"]


def fingerprint(module: GraphModule) -> str:
    """A digest of the graph's operations and their names, to which plans refer."""
    lines = (f"{node.name}|{node.op}|{node.target}|{node.args}|{node.kwargs}" for node in module.graph.nodes)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def training_module(program: torch.export.ExportedProgram, batch_norm: BatchNormMode) -> GraphModule:
    """The program's graph as an `nn.Module` with the original parameter names, in training mode.

    Args:
        program: from `torch.export.export` or `torch.export.load`. Its tensors are shared, not copied.
        batch_norm: `frozen` normalises by running statistics in training too and never moves them; `batch` trains as usual.
    """
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    # `ExportedProgram.module` forbids both, since its dropout and batch norm could not follow; these do.
    for name in ("train", "eval"):
        module.__dict__.pop(name, None)
    _own_parameters(module)
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if _counts_batches(node, module):
            module.graph.erase_node(node)
        elif node.target is aten.batch_norm.default:
            _replace_batch_norm(module, node, batch_norm)
        elif node.target in PADDED_CONVOLUTIONS:
            _make_padding_explicit(module, node)
        elif node.target in DROPOUTS:
            values = arguments(node)
            _call_module(module, node, DROPOUTS[node.target](values["p"]), (node.args[0],))
        elif node.target is aten.scaled_dot_product_attention.default and arguments(node)["dropout_p"]:
            _replace_attention(module, node)
    write_as_one(module)
    module.recompile()
    return module.train()


def call_with(module: GraphModule, inputs: Tensor | tuple[Tensor, ...] | dict[str, Tensor]) -> Any:
    """Call a module from `training_module` with its inputs in the graph's order, or by the graph's names, however it was exported.

    Raises:
        KeyError: a named input is missing.
    """
    args, kwargs = pytree.tree_unflatten(in_order(module, inputs), module.graph._codegen.pytree_info.in_spec)  # type: ignore[attr-defined]
    return module(*args, **kwargs)


def in_order(module: GraphModule, inputs: Tensor | tuple[Tensor, ...] | dict[str, Tensor]) -> list[Tensor]:
    """The inputs as the graph takes them, one after the other.

    Raises:
        KeyError: a named input is missing.
    """
    if isinstance(inputs, dict):
        return [inputs[node.name] for node in module.graph.nodes if node.op == "placeholder"]
    return list(inputs) if isinstance(inputs, tuple) else [inputs]


DROPOUTS: dict[Any, Callable[[float], nn.Module]] = {
    aten.dropout.default: nn.Dropout,
    aten.dropout_.default: lambda p: nn.Dropout(p, inplace=True),
    aten.feature_dropout.default: nn.Dropout2d,
    aten.feature_dropout_.default: lambda p: nn.Dropout2d(p, inplace=True),
    aten.alpha_dropout.default: nn.AlphaDropout,
    aten.feature_alpha_dropout.default: nn.FeatureAlphaDropout,
}

PADDED_CONVOLUTIONS: dict[Any, Any] = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def per_axis(values: list[int] | int, axes: int) -> list[int]:
    """One number an axis, of one for all or one each."""
    values = [values] if isinstance(values, int) else list(values)
    return values * axes if len(values) == 1 else values


def _make_padding_explicit(module: GraphModule, node: Node) -> None:
    """Write `same` and `valid` as numbers; where `same` is uneven, pad before, as torch itself does."""
    values = arguments(node)
    kernel = module.get_parameter(str(values["weight"].target)).shape[2:]
    dilation = per_axis(values["dilation"], len(kernel))
    totals = [d * (k - 1) if values["padding"] == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    padding = [total // 2 for total in totals]
    x = values["input"]
    if any(total % 2 for total in totals):
        uneven = [amount for total in reversed(totals) for amount in (0, total % 2)]
        with module.graph.inserting_before(node):
            padded = module.graph.call_function(aten.pad.default, (x, uneven))
        padded.meta = {key: x.meta[key] for key in ("val", "stack_trace") if key in x.meta}
        x = padded
    node.target = PADDED_CONVOLUTIONS[node.target]
    node.args, node.kwargs = (x, values["weight"], values["bias"], values["stride"], padding, dilation, values["groups"]), {}


def _replace_attention(module: GraphModule, node: Node) -> None:
    values = arguments(node)
    attention = Attention(values["dropout_p"], values["is_causal"], values["scale"], values["enable_gqa"])
    _call_module(module, node, attention, tuple(values[name] for name in ("query", "key", "value", "attn_mask")))


def _own_parameters(module: GraphModule) -> None:
    """Give the module parameters of its own on the program's tensors, all of them to train: what is frozen here stays so only here."""
    own: dict[Any, nn.Parameter] = {}
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        # Loading makes two parameters of a tied one, on one storage: here it is one again.
        place = (parameter.untyped_storage().data_ptr(), parameter.storage_offset(), parameter.shape, parameter.stride())
        key = place if parameter.numel() else id(parameter)
        own.setdefault(key, nn.Parameter(parameter.detach(), requires_grad=parameter.is_floating_point()))
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, own[key])


def _counts_batches(node: Node, module: GraphModule) -> bool:
    """Whether the operation only counts batch norm's batches; `BatchNorm` does that itself."""
    counter = node.args[0] if node.args else None
    return (
        node.target is aten.add_.Tensor
        and isinstance(counter, Node)
        and counter.op == "get_attr"
        and str(counter.target).endswith("num_batches_tracked")
        and not node.users
    )


def _replace_batch_norm(module: GraphModule, node: Node, mode: BatchNormMode) -> None:
    values = arguments(node)
    tensors = [values[name] for name in ("input", "weight", "bias", "running_mean", "running_var")]
    mean = values["running_mean"]
    if mode == "frozen" and mean is not None:
        node.args = (*tensors, False, values["momentum"], values["eps"], values["cudnn_enabled"])
        return
    if mean is not None and values["momentum"] is not None:
        counter = str(mean.target).removesuffix("running_mean") + "num_batches_tracked"
        if counter in dict(module.named_buffers()):
            with module.graph.inserting_before(node):
                tensors.append(module.graph.get_attr(counter))
    _call_module(module, node, BatchNorm(values["momentum"], values["eps"]), tuple(tensors))


def _call_module(module: GraphModule, node: Node, submodule: nn.Module, args: tuple[Any, ...]) -> None:
    """Make `node` call a module of ours instead. Modules follow `.train()`; having no parameters, they leave `state_dict` alone."""
    name = f"memfit_{node.name}"
    module.add_module(name, submodule)
    node.op, node.target, node.args, node.kwargs = "call_module", name, args, {}
