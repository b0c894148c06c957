"""What a step holds, found by running its forward once: which operation keeps which storage for its backward."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

from memfit.arguments import arguments
from memfit.losses import loss_of
from memfit.overwriting import HARDTANHS, RELUS
from memfit.rewriting import MAX_POOLINGS, holds_its_result
from planner.capture import NamedRun, TrainingGraph, source_of, target_name
from planner.profile import Overwritten
from planner.record import forward_range
from planner.sample import Batch

LOSS = "loss"
aten = torch.ops.aten
SELECTING = {
    *MAX_POOLINGS,
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
}  # of its values


@dataclass(slots=True)
class Storage:
    """One storage of the step: its making, its uses in forward, and the operations that keep it."""

    name: str
    producer: int
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    born: int
    last_use: int
    holders: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Structure:
    """Lifetimes of all storages of one step, with everything trained and kept whole.

    Attributes:
        names: of the operations, in order; the loss is the last.
        storages: all of them, also those that only forward uses.
        internal_bytes: for each operation, what it keeps of its own making.
        storage_of: index into `storages` of every operation's output (and model input, by name).
        shape_of: shape of every operation's output that is a tensor.
    """

    names: list[str]
    targets: list[str]
    sources: list[str | None]
    inputs: list[tuple[int, ...]]
    parameters: list[tuple[str, ...]]
    storages: list[Storage]
    internal_bytes: list[int]
    storage_of: dict[str, int]
    shape_of: dict[str, tuple[int, ...]]

    def itemsize(self, name: str) -> int:
        """Bytes of an element of an operation's output."""
        dtype: torch.dtype = getattr(torch, self.storages[self.storage_of[name]].dtype)
        return dtype.itemsize


def observe_structure(graph: TrainingGraph, batch: Batch, loss: str) -> Structure:
    """Run one forward with everything kept whole, and see what every operation keeps.

    Raises:
        ValueError: the loss does not fit the outputs or targets.
    """
    observer = _Observer(graph, batch)
    run = NamedRun(graph.exact, observer.see)
    with torch.autograd.graph.saved_tensors_hooks(observer.keep, lambda tensor: tensor):
        outputs = run.run(*batch.inputs)
        observer.forget_kept()
        with forward_range(LOSS):
            value = loss_of(loss, outputs, batch.targets)
        observer.see_loss(outputs, value)
    return observer.structure


class _Observer:
    def __init__(self, graph: TrainingGraph, batch: Batch) -> None:
        operations = graph.operations
        self.index = {node.name: i for i, node in enumerate(operations)} | {LOSS: len(operations)}
        self.structure = Structure(
            names=[*self.index],
            targets=[*(target_name(node, graph.module) for node in operations), LOSS],
            sources=[*(source_of(node) for node in operations), None],
            inputs=[()] * (len(operations) + 1),
            parameters=[*(graph.parameter_names(node) for node in operations), ()],
            storages=[],
            internal_bytes=[0] * (len(operations) + 1),
            storage_of={},
            shape_of={},
        )
        self.static = {t.untyped_storage().data_ptr() for t in (*graph.module.parameters(), *graph.module.buffers())}
        self.by_address: dict[int, tuple[StorageWeakRef, int]] = {}
        self.kept: list[Tensor] = []
        self.floating: set[str] = set()
        placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
        for node, tensor in zip(placeholders, batch.inputs, strict=True):
            self._add(node.name, -1, tensor)
        if batch.targets is not None:
            self._add("targets", -1, batch.targets)

    def keep(self, tensor: Tensor) -> Tensor:
        self.kept.append(tensor)
        return tensor

    def forget_kept(self) -> None:
        self.kept.clear()

    def see(self, node: Node, args: tuple[Any, ...], result: Any) -> None:
        self._see(node.name, [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)], result)
        if any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in pytree.tree_leaves(result)):
            self.floating.add(node.name)
        # An operation may send gradients to all operations whose floating outputs it reads.
        self.structure.inputs[self.index[node.name]] = tuple(
            self.index[source.name] for source in node.all_input_nodes if source.name in self.floating
        )

    def see_loss(self, outputs: Any, value: Tensor) -> None:
        leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
        made = {self._storage_of(leaf) for leaf in leaves}
        producers = {self.structure.storages[at].producer for at in made if at is not None}
        # Views of a storage count by the operation that made the view, which is the last to read the storage.
        views = {
            max((self.index[name] for name, at in self.structure.storage_of.items() if at == of and name in self.index), default=-1)
            for of in made
        }
        self._see(LOSS, leaves, value)
        self.structure.inputs[-1] = tuple(sorted(i for i in producers | views if 0 <= i < self.index[LOSS]))

    def _see(self, name: str, operands: list[Tensor], result: Any) -> None:
        at = self.index[name]
        if isinstance(result, Tensor):
            self.structure.shape_of[name] = tuple(result.shape)
        for operand in operands:
            if (of := self._storage_of(operand)) is not None:
                self.structure.storages[of].last_use = at
        alias = {_address(operand) for operand in operands}
        for leaf in pytree.tree_leaves(result):
            if not isinstance(leaf, Tensor):
                continue
            if _address(leaf) not in alias and _address(leaf) not in self.static:
                self._add(name, at, leaf)
            elif (of := self._storage_of(leaf)) is not None:
                self.structure.storage_of[name] = of
        seen: set[int] = set()
        for tensor in self.kept:
            address = _address(tensor)
            if address in self.static or address in seen:
                continue
            seen.add(address)
            if (of := self._storage_of(tensor)) is not None:
                self.structure.storages[of].holders.add(at)
            else:
                self.structure.internal_bytes[at] += tensor.untyped_storage().nbytes()
        self.kept.clear()

    def _storage_of(self, tensor: Tensor) -> int | None:
        """Index of the tensor's storage, if it is one that is known. Addresses of those that are gone may be others' by now."""
        reference, at = self.by_address.get(_address(tensor), (None, -1))
        return at if reference is not None and not reference.expired() else None

    def _add(self, name: str, producer: int, tensor: Tensor) -> None:
        storage = Storage(
            name,
            producer,
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            tensor.untyped_storage().nbytes(),
            max(producer, 0),
            max(producer, 0),
        )
        self.by_address[_address(tensor)] = StorageWeakRef(tensor.untyped_storage()), len(self.structure.storages)
        self.structure.storage_of.setdefault(name, len(self.structure.storages))
        self.structure.storages.append(storage)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def bits_held(graph: TrainingGraph, node: Node) -> str:
    """The operation or input whose values an operation with a mask would otherwise keep: a rectifier its result, if that stays as it is."""
    if node.target in RELUS or holds_its_result(graph.module, node):
        return node.name
    values = arguments(node)
    source = values.get("self", values.get("input"))
    assert isinstance(source, Node)
    return source.name


def overwritten(graph: TrainingGraph, structure: Structure, activations: dict[str, int]) -> dict[int, Overwritten]:
    """For each operation that may write its result over what it reads last: what that is.

    Args:
        activations: index of each, by its name.
    """
    found, index = {}, {name: i for i, name in enumerate(structure.names)}
    for name, x in graph.overwritable.items():
        storage = structure.storages[structure.storage_of[x.name]]
        if (storage.name, storage.producer, storage.last_use) == (x.name, index[x.name], index[name]):
            found[index[name]] = Overwritten(storage.producer, storage.bytes, activations.get(x.name))
    return found


def bounds_of(node: Node) -> tuple[float, ...]:
    """What an operation's results are never below, and what never above: () where nothing is known.

    Args:
        node: of a module before any rewriting.
    """
    if node.target in RELUS:
        return (0.0,)
    if node.target in HARDTANHS:
        values = arguments(node)
        return float(values.get("min_val", 0)), float(values.get("max_val", 6))
    source = bounds_of(node.args[0]) if node.args and isinstance(node.args[0], Node) else ()
    module = node.graph.owning_module
    if node.op == "call_module" and module is not None and isinstance(module.get_submodule(str(node.target)), nn.Dropout):
        return (0.0,) if source[:1] == (0.0,) else ()  # it enlarges what it leaves
    return source if node.target in SELECTING else ()
