"""Every activation of a step with its holders, and the options that the menu has for it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from statistics import fmean
from typing import NamedTuple

from torch.fx import Node

from memfit.forms import Bitmap
from memfit.operators.pooling import RANGE_WINDOWS
from memfit.overwriting import RECTIFIERS, RELUS
from memfit.rewriting import MAX_POOLINGS, drops_out, holds_its_result
from planner.capture import TrainingGraph
from planner.fidelity import Energies, Measured, holders_of_values
from planner.menu import unbeaten
from planner.plan import FOLD, INDEX, MASK
from planner.profile import Activation, Form, Holder, Option
from planner.restoring import restore_bytes
from planner.spectra import Spectra
from planner.structure import Structure, bits_held
from planner.techniques import candidate, mask_bytes, mask_seconds, settings_of
from planner.travelling import Travelled

BITMAP = Bitmap.technique
DIGITS = 4  # of shares of batches


def activations_of(
    graph: TrainingGraph, structure: Structure, spectra: dict[str, Spectra], energies: Energies, travelled: Travelled
) -> tuple[Activation, ...]:
    """The activations of a step. What operations keep of their own and could hold in bits becomes an activation too, and is taken
    out of the structure's `internal_bytes`.

    Args:
        structure: of the whole batch or of a part of it: bytes are for its shapes.
        energies, travelled: what each option loses, of the whole batch.
    """
    step = _Step(graph, structure, spectra, energies, travelled)
    held = [step.activation(at) for at, storage in enumerate(structure.storages) if storage.producer >= 0 and storage.holders]
    return (*held, *_kept_inside(graph, structure))


class _Use(NamedTuple):
    """A holder of a storage; its operation, None of what is none of the graph's; and which of the inputs that it may work itself out
    from again it is, None where it may not.
    """

    holder: Holder
    node: Node | None
    read: Node | None


@dataclass(frozen=True)
class _Step:
    """Of what activations are made; the arguments of `activations_of`."""

    graph: TrainingGraph
    structure: Structure
    spectra: dict[str, Spectra]
    energies: Energies
    travelled: Travelled

    @cached_property
    def nodes(self) -> dict[str, Node]:
        return {node.name: node for node in self.graph.operations}

    @cached_property
    def value_of(self) -> dict[str, str]:
        """The value that each operation with a measured one holds."""
        return {holder: value for value, holders in holders_of_values(self.graph).items() for holder in holders}

    def activation(self, at: int) -> Activation:
        """That of a storage."""
        storage, uses = self.structure.storages[at], self._uses(at)
        values = [self.value_of[name] for use in uses if (name := self._name(use)) in self.value_of]
        forms = [form for value in dict.fromkeys(values) for form in self._forms_of_value(at, uses, value)]
        if storage.name in self.graph.folded and [*map(self._name, uses)] == [self.graph.folded[storage.name].name]:
            fold = fold_option(self.graph, self.nodes[storage.name])
            forms = [replace(form, options=(*form.options, fold)) for form in forms] or [Form(storage.name, (0,), (fold,))]
        forms += [form for n, use in enumerate(uses) for form in self._forms_of_operation(at, n, use)]
        return Activation(
            *(storage.name, storage.producer, storage.shape, storage.dtype, storage.bytes, storage.born, storage.last_use),
            tuple(use.holder for use in uses),
            tuple(forms),
        )

    def _name(self, use: _Use) -> str:
        return self.structure.names[use.holder.operation]

    def _uses(self, at: int) -> list[_Use]:
        """The holders of a storage. An operation that reads several views of it, as attention does q, k and v, is one for each: each has
        to be served.
        """
        uses = []
        for i in sorted(self.structure.storages[at].holders):
            node = self.nodes.get(self.structure.names[i])
            inputs = self.graph.repeated.get(node.name, ()) if node is not None else ()
            read = [x for x in dict.fromkeys(inputs) if x.op != "placeholder" and self.structure.storage_of.get(x.name) == at]
            uses += [_Use(_holder(self.graph, node, i), node, x) for x in (read or (None,))]
        return uses

    def _forms_of_value(self, at: int, uses: list[_Use], value: str) -> Iterator[Form]:
        """Those that restore an input of weights, and that in bits which serves the rectifier that makes it too."""
        served = tuple(n for n, use in enumerate(uses) if self.value_of.get(self._name(use)) == value and use.holder.needed_for == "weight")
        if not served or value not in self.energies.candidates or self.structure.storage_of[value] != at:
            return
        restoring = [self.nodes[self._name(uses[n])] for n in served]
        options = _options(self.energies.candidates[value], value, restoring, self.graph, self.structure)
        modes = self.spectra[value].modes() if self.structure.shape_of[value] == self.spectra[value].shape else ()
        rectifier = tuple(n for n, use in enumerate(uses) if self._name(use) == value)
        if not (rectifier and self.nodes[value].target in RELUS and holds_its_result(self.graph.module, self.nodes[value])):
            yield Form(value, served, options, modes)
            return
        yield Form(value, served, tuple(option for option in options if option.technique != BITMAP), modes)
        yield Form(value, rectifier + served, tuple(option for option in options if option.technique == BITMAP))

    def _forms_of_operation(self, at: int, n: int, use: _Use) -> Iterator[Form]:
        """Those that serve one holder: a rectifier's mask, and what an operation works itself out from again."""
        graph, structure, node = self.graph, self.structure, use.node
        if node is None:
            return
        if node.target in RECTIFIERS and graph.may_hold_bits(node) and structure.storage_of.get(bits_held(graph, node)) == at:
            yield Form(node.name, (n,), (mask_option(prod(structure.storages[at].shape)),))
        if use.read is not None:
            measured = self.travelled.get((use.read.name, node.name), [])
            yield Form(use.read.name, (n,), _options(measured, use.read.name, [node], graph, structure))
        elif node.name in graph.repeated and structure.storage_of.get(node.name) == at:
            yield Form(node.name, (n,), ())  # its own output, which it then does without: options come with recomputation


def _kept_inside(graph: TrainingGraph, structure: Structure) -> Iterator[Activation]:
    """What an operation keeps of its own making and could hold in less: dropout's choices, the input a rectifier overwrites, the indices
    of max pooling; and what it could work out again.
    """
    index = {name: i for i, name in enumerate(structure.names)}
    for node in graph.operations:
        i = index[node.name]
        again = holds_inputs(graph, structure, node.name) and not drops_out(node)  # whose bits are what it cannot do without
        if (graph.may_hold_bits(node) or again) and structure.internal_bytes[i]:
            storage = structure.storages[structure.storage_of[node.name]]
            pooled = node.target in MAX_POOLINGS
            options = () if again else (index_option(storage.shape) if pooled else mask_option(prod(storage.shape)),)
            form = Form(node.name, (0,), options)
            kept = structure.internal_bytes[i]
            yield Activation(f"{node.name}:kept", i, storage.shape, "bool", kept, i, i, (Holder(i, "gradient"),), (form,))
            structure.internal_bytes[i] = 0


def holds_inputs(graph: TrainingGraph, structure: Structure, operation: str) -> bool:
    """Whether an operation may work itself out again from what it keeps anyway: all its inputs."""
    inputs = graph.repeated.get(operation, ())
    at = structure.names.index(operation) if inputs else -1
    storages = [structure.storages[structure.storage_of[x.name]] for x in inputs if x.name in structure.storage_of]
    return bool(inputs) and len(storages) == len(inputs) and all(at in storage.holders for storage in storages)


def _holder(graph: TrainingGraph, node: Node | None, operation: int) -> Holder:
    weight = graph.weight_of(node) if node is not None else None
    return Holder(operation, "gradient") if weight is None else Holder(operation, "weight", weight)


def _options(measured: list[Measured], value: str, holders: list[Node], graph: TrainingGraph, structure: Structure) -> tuple[Option, ...]:
    """The measured candidates for a value, without those that another of the same technique beats.

    Beaten by another technique they stay: a request may allow theirs alone (`planner.menu`).
    """
    shape, itemsize, options = structure.shape_of[value], structure.itemsize(value), []
    for each in measured:
        form = each.candidate.form
        cost = candidate(form, shape, itemsize)
        lost = {name: fmean(energies) for name, energies in each.lost_energy.items()}
        if isinstance(form, Bitmap) and form.bits is None and not any(lost.values()):
            lost = {}  # as every batch of the sample had room
        options.append(
            Option(
                form.technique,
                settings_of(form),
                cost.held_bytes,
                cost.compress_bytes,
                restore_bytes(form, shape, itemsize, holders, graph, structure),
                lost,
                each.seconds,
                shipped_bytes=cost.shipped_bytes,
                batch_losses=in_means(each.batch_losses),
                folded_energy={name: fmean(energies) for name, energies in each.folded_energy.items()} if lost else {},
            )
        )
    techniques = dict.fromkeys(option.technique for option in options)
    kept = {id(o) for technique in techniques for o in unbeaten([option for option in options if option.technique == technique])}
    return tuple(option for option in options if id(option) in kept)


def in_means(of_batches: list[float]) -> tuple[float, ...]:
    """What was measured in each batch, in units of the mean; nothing of one batch."""
    mean = fmean(of_batches) if len(of_batches) > 1 else 0.0
    return tuple(round(each / mean, DIGITS) for each in of_batches) if mean else ()


def index_option(shape: tuple[int, ...]) -> Option:
    """One byte a window of max pooling (B, C, *windows), for its int64 index."""
    windows = prod(shape)
    workspace = 3 * 8 * min(windows, max(prod(shape[2:]), RANGE_WINDOWS))
    return Option(INDEX, {}, windows, workspace, workspace, {}, mask_seconds(8 * windows))


def fold_option(graph: TrainingGraph, convolution: Node) -> Option:
    """No bytes of a convolution's result that its norm alone holds; the weight takes the norm's scale in backward."""
    weight = str(graph.weight_of(convolution))
    return Option(FOLD, {}, 0, 0, graph.module.get_parameter(weight).nbytes, {}, 0.0, by_gradient_of=weight)


def mask_option(elements: int) -> Option:
    held, workspace = mask_bytes(elements)
    return Option(MASK, {}, held, workspace, workspace, {}, mask_seconds(elements))
