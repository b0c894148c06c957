"""Measure one model on one sample: structure, footprint at every moment, gradient energies, and what every option loses."""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from statistics import median
from time import perf_counter

from torch import Tensor
from torch.fx import GraphModule, Node

from memfit.losses import LOSSES
from memfit.training_step import make_optimizer
from planner.capture import TrainingGraph
from planner.errors import BadSample, UnknownLoss
from planner.fidelity import Energies, holders_of_values, measure_energies, measure_spectra
from planner.named_step import named_step
from planner.plan import MASK
from planner.profile import Activation, Form, Holder, Live, Moment, Operation, Option, Parameter, Profile
from planner.record import Recording, record
from planner.request import Optimizer, ProfileSettings
from planner.sample import Batch, batches_of
from planner.spectra import Spectra
from planner.structure import Structure, bits_held, observe_structure
from planner.techniques import candidates, mask_bytes, settings_of, shipped_tensors
from planner.timeline import exact_choices, timeline

Progress = Callable[[float, str], None]


def make_profile(graph: TrainingGraph, sample: dict[str, Tensor], settings: ProfileSettings, progress: Progress) -> Profile:
    """Measure a training graph on a sample.

    Raises:
        BadSample: the sample does not fit the model or the loss, or gives a loss that is not finite.
        UnknownLoss: no such loss or output.
    """
    loss = settings.loss
    check_loss(graph, loss)
    batches = batches_of(sample, graph.inputs, loss, settings.batch_size)
    progress(0.02, "what the step holds")
    try:
        structure = observe_structure(graph, batches[0], loss)
    except (ValueError, RuntimeError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadSample(
            f"the model does not run on this sample: {reason}. Check shapes, types and index ranges of inputs and targets."
        ) from error
    progress(0.06, "the plain step")
    plain, seconds = measure_step(graph.module, batches[0], loss)
    progress(0.12, "the footprint of every operation")
    exact, _ = measure_step(graph.rewritten(graph.exact_recipe(loss)), batches[0], loss)
    spectra = measure_spectra(graph, batches, loss, lambda done: progress(0.15 + 0.25 * done, "spectra of the activations"))
    menu = {value: candidates(each) for value, each in spectra.items()}
    energies = measure_energies(
        graph, batches, loss, menu, lambda done: progress(0.4 + 0.6 * done, "gradients, and what each option loses")
    )
    known = _assemble(graph, structure, settings, batches[0], spectra, energies)
    return replace(
        known,
        operations=_with_workspace(known, exact),
        plain_peak_bytes=known.static_bytes + plain.peak_bytes,
        plain_seconds=seconds,
        plain=tuple(Live(moment, known.static_bytes + peak) for moment, peak in plain.peaks.items()),
    )


def check_loss(graph: TrainingGraph, loss: str) -> None:
    """Refuse a loss that is not known, or names an output that is not there.

    Raises:
        UnknownLoss: so it is.
    """
    known = loss.removeprefix("output:") in graph.outputs if loss.startswith("output:") else loss in LOSSES
    if not known:
        raise UnknownLoss(loss, graph.outputs)


def measure_step(module: GraphModule, batch: Batch, loss: str, steps: int = 3) -> tuple[Recording, float]:
    """One step under the allocator's record, with an optimizer without state; and its seconds, median of some unrecorded ones.

    The learning rate is 0, so the weights stay as they were.
    """
    optimizer = make_optimizer(list(module.parameters()), {"name": "sgd"}, lr=0.0)
    step = named_step(module, optimizer, loss, batch)
    seconds = []
    for _ in range(steps):
        started = perf_counter()
        step()
        seconds.append(perf_counter() - started)
    return record(step), median(seconds)


def _assemble(
    graph: TrainingGraph, structure: Structure, settings: ProfileSettings, batch: Batch, spectra: dict[str, Spectra], energies: Energies
) -> Profile:
    """All that is known without the allocator's record."""
    module = graph.module
    activations = _activations(graph, structure, spectra, energies)  # first: it takes over what operations keep of their own
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*module.parameters(), *module.buffers())}
    return Profile(
        graph=graph.fingerprint,
        loss=settings.loss,
        batch_norm=settings.batch_norm,
        batch_size=batch.inputs[0].shape[0],
        static_bytes=sum(storages.values()) + batch.bytes,
        parameters=tuple(
            Parameter(name, tuple(p.shape), p.untyped_storage().nbytes(), energies.gradient.get(name, 0.0) / energies.batches)
            for name, p in module.named_parameters()
        ),
        operations=tuple(
            Operation(
                name,
                structure.targets[i],
                structure.inputs[i],
                structure.parameters[i],
                0,
                0,
                structure.internal_bytes[i],
                structure.sources[i],
            )
            for i, name in enumerate(structure.names)
        ),
        activations=activations,
        storages=tuple((s.bytes, s.born, s.last_use) for s in structure.storages if s.producer >= 0),
        plain_peak_bytes=0,
        plain_seconds=0.0,
        tensors=shipped_tensors(each.candidate.form for measured in energies.candidates.values() for each in measured),
    )


def _activations(graph: TrainingGraph, structure: Structure, spectra: dict[str, Spectra], energies: Energies) -> tuple[Activation, ...]:
    nodes = {node.name: node for node in graph.operations}
    index = {name: i for i, name in enumerate(structure.names)}
    values = {holder: value for value, holders in holders_of_values(graph).items() for holder in holders}
    activations = []
    for at, storage in enumerate(structure.storages):
        if storage.producer < 0 or not storage.holders:
            continue
        holders = [_holder(graph, nodes.get(structure.names[i]), i) for i in sorted(storage.holders)]
        forms = []
        for value in dict.fromkeys(values[structure.names[h.operation]] for h in holders if structure.names[h.operation] in values):
            served = tuple(
                n for n, h in enumerate(holders) if values.get(structure.names[h.operation]) == value and h.needed_for == "weight"
            )
            if served and value in energies.candidates and structure.storage_of[value] == at:
                forms.append(Form(value, served, _options(value, energies), spectra[value].modes()))
        for n, holder in enumerate(holders):
            node = nodes.get(structure.names[holder.operation])
            if (
                node is not None
                and node.op == "call_function"
                and graph.may_hold_bits(node)
                and structure.storage_of.get(bits_held(node)) == at
            ):
                forms.append(Form(node.name, (n,), (_mask(prod(storage.shape)),)))
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
    # What an operation keeps of its own making and could hold in bits: dropout's choices, the input a rectifier overwrites.
    for node in graph.operations:
        i = index[node.name]
        if graph.may_hold_bits(node) and structure.internal_bytes[i]:
            storage = structure.storages[structure.storage_of[node.name]]
            form = Form(node.name, (0,), (_mask(prod(storage.shape)),))
            kept = structure.internal_bytes[i]
            activations.append(Activation(f"{node.name}:kept", i, storage.shape, "bool", kept, i, i, (Holder(i, "gradient"),), (form,)))
            structure.internal_bytes[i] = 0
    return tuple(activations)


def _holder(graph: TrainingGraph, node: Node | None, operation: int) -> Holder:
    weight = graph.weight_of(node) if node is not None else None
    return Holder(operation, "gradient") if weight is None else Holder(operation, "weight", weight)


def _mask(elements: int) -> Option:
    held, workspace = mask_bytes(elements)
    return Option(MASK, {}, held, workspace, workspace, {}, 0.0)


def _options(value: str, energies: Energies) -> tuple[Option, ...]:
    """The measured candidates, without those that another beats in bytes and in lost energy."""
    options: list[Option] = []
    best = float("inf")
    for each in energies.candidates[value]:  # in order of bytes
        lost = {name: energy / energies.batches for name, energy in each.lost_energy.items()}
        total = sum(lost.values())
        if total < best:
            best = total
            form, c = each.candidate.form, each.candidate
            options.append(
                Option(
                    form.technique,
                    settings_of(form),
                    c.held_bytes,
                    c.compress_bytes,
                    c.restore_bytes,
                    lost,
                    each.seconds,
                    c.shipped_bytes,
                )
            )
    return tuple(options)


def _with_workspace(profile: Profile, exact: Recording) -> tuple[Operation, ...]:
    """Operations with what the record shows beyond the storages known to be live."""
    everything = frozenset(parameter.name for parameter in profile.parameters)
    known = {f.moment: f.total_bytes for f in timeline(profile, Optimizer()).predict(exact_choices(profile, everything))}

    def beyond(phase: str, operation: str) -> int:
        moment = Moment(phase, operation)  # type: ignore[arg-type]
        return profile.static_bytes + exact.peaks[moment] - known[moment] if moment in exact.peaks else 0

    return tuple(
        replace(operation, forward_bytes=beyond("forward", operation.name), backward_bytes=beyond("backward", operation.name))
        for operation in profile.operations
    )
