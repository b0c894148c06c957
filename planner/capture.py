"""From an exported program to a training graph: its operations in order, their parameters, and what can hold what.

The graph is the model: whatever `torch.export` writes down can be planned, except what this module names and refuses.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from memfit.overwriting import changes_its_input, folded_norm, overwritable
from memfit.program import BatchNormMode, fingerprint, training_module
from memfit.recipe import Recipe
from memfit.rewriting import DROPPING, holds_its_input, makes_held, may_hold_bits, repeated_inputs, rewrite
from planner.errors import BadModel, UnsupportedOperation
from planner.record import compress_range, forward_range, sliced_range
from planner.sample import ModelInput

aten = torch.ops.aten
NAMESPACES = {"aten", "prims", "memfit", "_operator", "builtins", "math", "torch"}
FIXED_AT_EXPORT = {"rrelu", "rrelu_"}
RECURRENT = {"lstm": "nn.LSTMCell", "gru": "nn.GRUCell", "rnn_tanh": "nn.RNNCell", "rnn_relu": "nn.RNNCell"}


@dataclass(frozen=True)
class TrainingGraph:
    """A program that trains, and what is known of it without data.

    Attributes:
        module: runs it as it was exported, with the training behaviour asked for.
        operations: its nodes that compute, in order.
    """

    program: torch.export.ExportedProgram
    batch_norm: BatchNormMode
    module: GraphModule
    operations: tuple[Node, ...]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.module)

    @property
    def inputs(self) -> tuple[ModelInput, ...]:
        return tuple(_model_input(node) for node in self.module.graph.nodes if node.op == "placeholder")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it returns, as `output:NAME` takes them."""
        spec = self.program.call_spec.out_spec
        if spec is None or spec.num_leaves == 0:
            return ()
        leaves = pytree.tree_leaves_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
        return tuple(
            ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path) or "0" for path, _ in leaves
        )

    @cached_property
    def canonical_names(self) -> dict[str, str]:
        """For every name of a parameter its first, which stands for it: a tied one has several."""
        first = {id(parameter): name for name, parameter in self.module.named_parameters()}
        return {name: first[id(parameter)] for name, parameter in self.module.named_parameters(remove_duplicate=False)}

    def parameter_names(self, operation: Node) -> tuple[str, ...]:
        """Names of the parameters that an operation reads itself."""
        read = (str(node.target) for node in operation.all_input_nodes if node.op == "get_attr")
        return tuple(self.canonical_names[name] for name in read if name in self.canonical_names)

    def weight_of(self, operation: Node) -> str | None:
        """The parameter whose gradient needs the operation's input, for one that may hold its input in a form."""
        if not holds_its_input(self.module, operation):
            return None
        weight = operation.args[1] if len(operation.args) > 1 else None
        return self.canonical_names.get(str(weight.target)) if isinstance(weight, Node) and weight.op == "get_attr" else None

    @cached_property
    def of_any_shape(self) -> frozenset[str]:
        """Operations whose result has the batch on another axis than the first: what stands at one place there, as at one token of a
        layer that takes tokens first, is of another shape for each number of samples.
        """
        shapes = {node.name: node.meta["val"].shape for node in self.operations if isinstance(node.meta.get("val"), Tensor)}
        return frozenset(name for name, shape in shapes.items() if not all(isinstance(size, int) for size in shape[1:]))

    def may_hold_bits(self, operation: Node) -> bool:
        return may_hold_bits(self.module, operation)

    @cached_property
    def repeated(self) -> dict[str, tuple[Node, ...]]:
        """For each operation that may work itself out again for its gradient, the activations it does that from."""
        return {node.name: inputs for node in self.operations if (inputs := repeated_inputs(node))}

    @cached_property
    def folded(self) -> dict[str, Node]:
        """For each convolution that a norm may be folded into, whose weights no other operations read: the norm."""
        uses = Counter(name for node in self.operations for name in self.parameter_names(node))

        def alone(node: Node) -> bool:
            weight = self.weight_of(node)
            return weight is not None and uses[weight] == 1

        pairs = ((node, norm) for node in self.operations if (norm := folded_norm(node)) is not None)
        return {node.name: norm for node, norm in pairs if alone(node) and alone(norm)}

    @cached_property
    def overwritable(self) -> dict[str, Node]:
        """For each operation that may write its result over what it reads last: what that is."""
        return {node.name: x for node in self.operations if (x := overwritable(node)) is not None}

    def rewritten(self, recipe: Recipe) -> GraphModule:
        """A module of its own, rewritten as a recipe says; it shares the parameters."""
        return rewrite(training_module(self.program, self.batch_norm), recipe)

    @cached_property
    def exact(self) -> GraphModule:
        """The module rewritten so that all trains and all is kept whole. Its gradients are its user's to let go."""
        return self.rewritten(self.exact_recipe("mse"))  # whatever the loss

    @cached_property
    def exact_without_dropout(self) -> GraphModule:
        """The same with dropout off."""
        return without_dropout(self.rewritten(self.exact_recipe("mse")))

    def exact_recipe(self, loss: str) -> Recipe:
        """All trains, all is kept whole: memfit's own operations holding what torch's would, or less where that costs nothing."""
        names = tuple(name for name, _ in self.module.named_parameters())
        return Recipe(self.fingerprint, self.batch_norm, loss, {"name": "sgd"}, names, (), ())


def without_dropout(module: GraphModule) -> GraphModule:
    """Switch the module's dropout off and leave all else in training."""
    for child in module.modules():
        if isinstance(child, DROPPING):
            child.eval()
    return module


def capture(program: torch.export.ExportedProgram, batch_norm: BatchNormMode = "frozen") -> TrainingGraph:
    """Read an exported program as a training graph.

    Raises:
        UnsupportedOperation: an operation changes state, draws numbers or leaves ATen in a way that cannot be planned.
        BadModel: it has no parameter, or takes what is not a tensor.
    """
    try:
        module = training_module(program, batch_norm)
    except (AssertionError, KeyError, RuntimeError, ValueError) as error:
        raise BadModel(
            f"the program does not give a module that trains: {error}. Export it with torch.export.export and torch {torch.__version__}."
        ) from error
    operations = tuple(node for node in module.graph.nodes if node.op in ("call_function", "call_module"))
    for node in module.graph.nodes:
        _check(node, module)
    if not any(True for _ in module.parameters()):
        raise BadModel(
            "the program has no parameter, so there is nothing to train. Export the model before freezing or folding its weights."
        )
    return TrainingGraph(program, batch_norm, module, operations)


def capture_module(model: nn.Module, args: tuple[Any, ...], batch_norm: BatchNormMode = "frozen") -> TrainingGraph:
    """Export an `nn.Module`, with the first axis of every input dynamic where it allows that, and capture it."""
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} if isinstance(arg, Tensor) and arg.dim() else None for arg in args)
    try:
        program = torch.export.export(model, args, dynamic_shapes=dynamic)
    except (torch._dynamo.exc.UserError, ValueError):  # a constant batch size somewhere inside: plan for just that one
        program = torch.export.export(model, args)
    return capture(program, batch_norm)


def operation_counts(graph: TrainingGraph) -> dict[str, int]:
    """How often each operation occurs, most often first."""
    return dict(Counter(target_name(node, graph.module) for node in graph.operations).most_common())


def target_name(node: Node, module: GraphModule) -> str:
    """Name of what an operation does, for people."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__
    return str(node.target) if isinstance(node.target, torch._ops.OpOverload) else getattr(node.target, "__name__", str(node.target))


def source_of(node: Node) -> str | None:
    """File and line of the model's own code that made an operation, if the export kept it."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if line.strip().startswith("File ")]
    own = [line for line in lines if "/torch/" not in line]
    if not own:
        return None
    file, line, *_ = own[-1].removeprefix("File ").split(", ")
    return f"{file.strip(chr(34)).rsplit('/', 1)[-1]}:{line.removeprefix('line ')}"


class NamedRun(Interpreter):
    """Runs a graph operation by operation, each in a named range, and shows its arguments and result to `observe`."""

    def __init__(
        self, module: GraphModule, observe: Callable[[Node, tuple[Any, ...], Any], None] | None = None, sliced: bool = False
    ) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.observe = observe
        self.range = sliced_range if sliced else forward_range

    def run_node(self, n: Node) -> Any:
        if n.op not in ("call_function", "call_module"):
            return super().run_node(n)
        with compress_range(next(iter(n.users)).name) if makes_held(n) else self.range(n.name):
            result = super().run_node(n)
        if self.observe is not None:
            self.observe(n, self.fetch_args_kwargs_from_env(n)[0], result)
        return result


def _model_input(node: Node) -> ModelInput:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        raise BadModel(f"input {node.name!r} is no tensor. Export the model with tensors as its only inputs.", input=node.name)
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return ModelInput(node.name, shape, str(value.dtype).removeprefix("torch."))


def _check(node: Node, module: GraphModule) -> None:
    if node.op == "placeholder":
        _model_input(node)
    if node.op != "call_function":
        return
    target = node.target
    if isinstance(target, torch._ops.HigherOrderOperator):
        raise _unsupported(
            node, "runs a graph inside the graph", "Write the model without torch.cond, map, scan or checkpoint wrappers before exporting."
        )
    if not isinstance(target, torch._ops.OpOverload):
        if getattr(target, "__module__", "").split(".")[0] not in NAMESPACES:
            raise _unsupported(node, "is not an ATen operation", "Export the model with torch.export.export, without custom functions.")
        return
    if target.namespace not in NAMESPACES:
        raise _unsupported(node, "is a custom operation", "Replace it by torch operations: how its backward holds memory is not known.")
    name = target._schema.name.split("::")[1]
    if name in FIXED_AT_EXPORT:
        raise _unsupported(node, "has its training behaviour fixed at export", "Replace it by torch operations without that state.")
    if name in RECURRENT:
        raise _unsupported(
            node,
            "goes through all of time by itself, and what it keeps of each step is its own",
            f"Write the loop out with {RECURRENT[name]}.",
        )
    changed = node.args[0] if changes_its_input(node, module) and node.args else None
    if isinstance(changed, Node) and changed.op in ("get_attr", "placeholder"):
        raise _unsupported(
            node, f"changes {changed.target!r}, which outlives the step", "Keep such state outside the model, or compute it anew."
        )


def _unsupported(node: Node, reason: str, remedy: str) -> UnsupportedOperation:
    return UnsupportedOperation(node.name, str(node.target), reason, remedy, source_of(node))
