"""Measure one model on one sample: structure, footprint at every moment, gradient energies, and what every option loses."""

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean, median
from time import perf_counter

import torch
from torch import Tensor
from torch.fx import GraphModule

from memfit.losses import LOSSES, loss_of
from memfit.process_memory import hand_back, keep_freed_memory
from memfit.program import call_with
from memfit.recipe import RECOMPUTE, HeldForm, Recipe
from memfit.training_step import make_optimizer
from planner.activations import activations_of, in_means
from planner.capture import TrainingGraph
from planner.errors import BadSample, UnknownLoss
from planner.fidelity import holders_of_values, measure_energies, measure_spectra
from planner.named_step import named_step
from planner.parts import part_sizes, splits
from planner.profile import Activation, Live, Moment, Operation, Parameter, Profile, Step
from planner.recomputation import recomputations, with_recomputations
from planner.record import Recording, record
from planner.request import ProfileSettings
from planner.row_gradients import row_gradients, worth_rows
from planner.sample import Batch, batches_of
from planner.structure import Structure, observe_structure, overwritten
from planner.techniques import candidates, shipped_tensors
from planner.travelling import measure_travelling
from planner.workspace import with_workspace

Progress = Callable[[float, str], None]

TIMED = 2  # forwards and backwards of each size


def make_profile(graph: TrainingGraph, sample: dict[str, Tensor], settings: ProfileSettings, progress: Progress) -> Profile:
    """Measure a training graph on a sample.

    Raises:
        BadSample: the sample does not fit the model or the loss, or gives a loss that is not finite.
        UnknownLoss: no such loss or output.
    """
    loss = settings.loss
    check_loss(graph, loss)
    batches = batches_of(sample, graph.inputs, loss, settings.batch_size)
    progress(0.02, "a first step")
    try:
        whole = observe_structure(graph, batches[0], loss)
    except (ValueError, RuntimeError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadSample(
            f"the model does not run on this sample: {reason.rstrip('.')}. Check shapes, types and index ranges of inputs and targets."
        ) from error
    progress(0.06, "the plain step")
    plain, seconds = measure_step(graph.module, batches[0], loss, steps=2)
    keep_freed_memory()  # from here on as planned steps do, as far as they may
    spectra = measure_spectra(graph, batches, loss, lambda done: progress(0.1 + 0.2 * done, "spectra of the activations"))
    menu = {value: candidates(each, value in graph.of_any_shape) for value, each in spectra.items()}
    energies = measure_energies(
        graph, batches, loss, menu, lambda done: progress(0.3 + 0.4 * done, "gradients, and what each option loses")
    )
    profile = Profile(
        graph=graph.fingerprint,
        loss=loss,
        batch_norm=settings.batch_norm,
        static_bytes=static_bytes(graph.module) + batches[0].bytes,
        batch_bytes=batches[0].bytes,
        parameters=tuple(
            Parameter(name, tuple(p.shape), p.untyped_storage().nbytes(), fmean(of_batches), in_means(of_batches))
            for name, p in graph.module.named_parameters()
            for of_batches in [energies.gradient.get(name, [0.0])]
        ),
        steps=(),
        splits=(),
        tensors=shipped_tensors(each.candidate.form for measured in energies.candidates.values() for each in measured),
        plain_peak_bytes=static_bytes(graph.module) + batches[0].bytes + plain.peak_bytes,
        plain_seconds=seconds,
        plain=tuple(Live(moment, static_bytes(graph.module) + batches[0].bytes + peak) for moment, peak in plain.peaks.items()),
    )
    sizes_of = {parameter.name: parameter.bytes for parameter in profile.parameters}
    sizes = part_sizes(graph, batches[0], loss)
    travelled = measure_travelling(
        graph, batches[0], loss, len(sizes) > 1, lambda done: progress(0.7 + 0.1 * done, "what operations lose that pass gradients on")
    )
    again = recomputations(graph, batches[0])
    for number, samples in enumerate(sizes):
        progress(0.8 + 0.2 * number / len(sizes), f"the footprint of every operation, {samples} sample{'s' * (samples > 1)} at a time")
        hand_back()
        part = batches[0].first(samples)
        structure = observe_structure(graph, part, loss) if number else whole
        activations = activations_of(graph, structure, spectra, energies, travelled)
        step = _step(profile, graph, part, structure, activations, batches[0].samples / samples)
        step = replace(step, activations=with_recomputations(graph, again, structure, step.activations, step.operations, sizes_of))
        profile = replace(profile, steps=(*profile.steps, step))
    return replace(profile, splits=splits(graph, profile.whole)) if len(sizes) > 1 else profile


def static_bytes(module: GraphModule) -> int:
    """Bytes of parameters and buffers."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*module.parameters(), *module.buffers())}.values())


def check_loss(graph: TrainingGraph, loss: str) -> None:
    """Refuse a loss that is not known, or names an output that is not there.

    Raises:
        UnknownLoss: so it is.
    """
    known = loss.removeprefix("output:") in graph.outputs if loss.startswith("output:") else loss in LOSSES
    if not known:
        raise UnknownLoss(loss, graph.outputs)


def measure_step(module: GraphModule, batch: Batch, loss: str, steps: int) -> tuple[Recording, float]:
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
    return record(step), median(seconds or [0.0])


def part_seconds(module: GraphModule, batch: Batch, loss: str) -> float:
    """Of a forward and a backward whose gradients are added to those of the part before, as in a step of several parts: the least of
    `TIMED`, since whatever else the machine does only adds to it.
    """
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    seconds = []
    for _ in range(TIMED):
        started = perf_counter()
        loss_of(loss, call_with(module, batch.inputs), batch.targets).backward()
        seconds.append(perf_counter() - started)
    module.zero_grad(set_to_none=True)
    return min(seconds)


def _step(
    profile: Profile, graph: TrainingGraph, part: Batch, structure: Structure, activations: tuple[Activation, ...], parts: float
) -> Step:
    """What a step holds while so many samples go through the model at a time, `parts` of them in the batch.

    The record tells how an operation's seconds compare with another's; those of all come from steps without it, which take less, and
    of each size by itself: few samples at a time take longer for each, and so do the sums of their gradients.
    """
    over = overwritten(graph, structure, {activation.name: at for at, activation in enumerate(activations)})
    in_place = tuple(structure.names[i] for i, it in over.items() if it.activation is None)  # those that a step with all kept whole has
    rows = row_gradients(graph, structure)
    few = profile.whole.rows if profile.steps else worth_rows(rows, profile.parameters)
    rows = {name: size for name, size in rows.items() if name in few}
    in_place_module = graph.rewritten(replace(graph.exact_recipe(profile.loss), in_place=in_place, rows=tuple(rows)))
    seconds = part_seconds(in_place_module, part, profile.loss)
    exact, _ = measure_step(in_place_module, part, profile.loss, steps=0)
    pace = parts * seconds / sum(each for moment, each in exact.seconds.items() if moment.phase != "update")
    step = Step(
        part.samples,
        (),
        activations,
        tuple((s.bytes, s.born, s.last_use) for s in structure.storages if s.producer >= 0),
        rows,
    )
    step = replace(
        step,
        operations=tuple(
            Operation(
                name,
                structure.targets[i],
                structure.inputs[i],
                structure.parameters[i],
                forward_bytes=0,
                backward_bytes=0,
                internal_bytes=structure.internal_bytes[i],
                over=over.get(i),
                forward_seconds=pace * exact.seconds.get(Moment("forward", name), 0.0),
                backward_seconds=pace * exact.seconds.get(Moment("backward", name), 0.0),
                source=structure.sources[i],
            )
            for i, name in enumerate(structure.names)
        ),
    )
    ranged, _ = measure_step(graph.rewritten(replace(_by_ranges(graph, profile.loss), rows=tuple(rows))), part, profile.loss, steps=0)
    return replace(step, operations=with_workspace(profile, graph, step, exact, ranged))


def _by_ranges(graph: TrainingGraph, loss: str) -> Recipe:
    """Everything trains and is kept whole, but is used by ranges of samples, as a form would be."""
    whole = dict.fromkeys((value, tuple(holders)) for value, holders in holders_of_values(graph).items())
    whole |= dict.fromkeys((x.name, (name,)) for name, inputs in graph.repeated.items() for x in inputs if x.op != "placeholder")
    forms = tuple(HeldForm(value, holders, RECOMPUTE, {"sources": (value,)}) for value, holders in whole)
    return replace(graph.exact_recipe(loss), forms=forms)
