"""Every activation of a step with its holders, and the options that the menu has for it."""

from dataclasses import replace
from math import prod
from statistics import fmean

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
    nodes = {node.name: node for node in graph.operations}
    index = {name: i for i, name in enumerate(structure.names)}
    values = {holder: value for value, holders in holders_of_values(graph).items() for holder in holders}
    activations = []
    for at, storage in enumerate(structure.storages):
        if storage.producer < 0 or not storage.holders:
            continue
        holders, read = [], []
        for i in sorted(storage.holders):
            node = nodes.get(structure.names[i])
            for x in _read_of(graph, structure, node, at) or [None]:  # q, k and v of one storage: each has to be served
                holders.append(_holder(graph, node, i))
                read.append(x)
        forms = []
        for value in dict.fromkeys(values[structure.names[h.operation]] for h in holders if structure.names[h.operation] in values):
            served = tuple(
                n for n, h in enumerate(holders) if values.get(structure.names[h.operation]) == value and h.needed_for == "weight"
            )
            if served and value in energies.candidates and structure.storage_of[value] == at:
                restoring = [nodes[structure.names[holders[n].operation]] for n in served]
                options = _options(energies.candidates[value], value, restoring, graph, structure)
                modes = spectra[value].modes() if structure.shape_of[value] == spectra[value].shape else ()
                rectifier = tuple(n for n, h in enumerate(holders) if structure.names[h.operation] == value)
                if not (rectifier and nodes[value].target in RELUS and holds_its_result(graph.module, nodes[value])):
                    forms.append(Form(value, served, options, modes))
                    continue
                forms.append(Form(value, served, tuple(option for option in options if option.technique != BITMAP), modes))
                forms.append(Form(value, rectifier + served, tuple(option for option in options if option.technique == BITMAP)))
        if storage.name in graph.folded and [structure.names[h.operation] for h in holders] == [graph.folded[storage.name].name]:
            fold = fold_option(graph, nodes[storage.name])
            forms = [replace(form, options=(*form.options, fold)) for form in forms] or [Form(storage.name, (0,), (fold,))]
        for n, holder in enumerate(holders):
            node = nodes.get(structure.names[holder.operation])
            if (
                node is not None
                and node.target in RECTIFIERS
                and graph.may_hold_bits(node)
                and structure.storage_of.get(bits_held(graph, node)) == at
            ):
                forms.append(Form(node.name, (n,), (mask_option(prod(storage.shape)),)))
            x = read[n]
            if node is not None and x is not None:
                forms.append(Form(x.name, (n,), _options(travelled.get((x.name, node.name), []), x.name, [node], graph, structure)))
            elif node is not None and node.name in graph.repeated and structure.storage_of.get(node.name) == at:
                forms.append(Form(node.name, (n,), ()))  # its own output, which it then does without: options come with recomputation
        activations.append(
            Activation(
                storage.name,
                storage.producer,
                storage.shape,
                storage.dtype,
                storage.bytes,
                storage.born,
                storage.last_use,
                tuple(holders),
                tuple(forms),
            )
        )
    # What an operation keeps of its own making and could hold in less: dropout's choices, the input a rectifier overwrites, the indices
    # of max pooling; and what it could work out again.
    for node in graph.operations:
        i = index[node.name]
        again = holds_inputs(graph, structure, node.name) and not drops_out(node)  # whose bits are what it cannot do without
        if (graph.may_hold_bits(node) or again) and structure.internal_bytes[i]:
            storage = structure.storages[structure.storage_of[node.name]]
            pooled = node.target in MAX_POOLINGS
            options = () if again else (index_option(storage.shape) if pooled else mask_option(prod(storage.shape)),)
            form = Form(node.name, (0,), options)
            kept = structure.internal_bytes[i]
            activations.append(Activation(f"{node.name}:kept", i, storage.shape, "bool", kept, i, i, (Holder(i, "gradient"),), (form,)))
            structure.internal_bytes[i] = 0
    return tuple(activations)


def _read_of(graph: TrainingGraph, structure: Structure, operation: Node | None, at: int) -> list[Node | None]:
    """Of a storage, the inputs of an operation that may work itself out again."""
    inputs = graph.repeated.get(operation.name, ()) if operation is not None else ()
    return [x for x in dict.fromkeys(inputs) if x.op != "placeholder" and structure.storage_of.get(x.name) == at]


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
