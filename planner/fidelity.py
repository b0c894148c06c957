"""Gradient energy, and what each form loses of it, on real batches.

A form's loss is measured: the weight gradient is linear in the input, so what it loses is the weight gradient of what the
restored activation is off, with the exact output gradient. Of a layer with many outputs, its energy is estimated from a few random
combinations of them, which is right on average. No other gradient is touched by a form, so losses of different forms add up; for
a tied weight, whose errors meet in one gradient, an upper limit stands in their place.

Source: random signs for norms, Achlioptas 2003.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from memfit.forms import Form, Held, Projection, Subspace
from memfit.losses import loss_of
from memfit.operators import conv, linear, norm
from memfit.tucker import Decompose, as_mode, decompose_mode, multiply_mode
from planner.capture import NamedRun, TrainingGraph
from planner.errors import BadSample
from planner.record import forward_range
from planner.sample import Batch
from planner.spectra import Spectra
from planner.structure import LOSS, bounds_of
from planner.techniques import Candidate

COMBINATIONS = 16  # of a layer's outputs; a layer with fewer than four times as many is measured whole


@dataclass(slots=True)
class Measured:
    """One candidate's lost energy, for each weight that would train from it and each batch; that of weights of norms that may be
    folded into these operations, if they are; and its seconds a step.
    """

    candidate: Candidate
    lost_energy: dict[str, list[float]]
    seconds: float = 0.0
    folded_energy: dict[str, list[float]] = field(default_factory=dict)

    @property
    def batch_losses(self) -> list[float]:
        """Of all weights together, in each batch."""
        return [sum(energies) for energies in zip(*self.lost_energy.values(), strict=True)]


@dataclass(slots=True)
class Energies:
    """
    Attributes:
        gradient: ‖g‖² of every parameter, in each batch.
        candidates: for each value that may be held in a form.
        batches: how many were measured.
    """

    gradient: dict[str, list[float]]
    candidates: dict[str, list[Measured]]
    batches: int = 0


def holders_of_values(graph: TrainingGraph) -> dict[str, list[str]]:
    """For each operation's output that may be held in a form: the operations that would train from it, in order."""
    holders: dict[str, list[str]] = {}
    for node in graph.operations:
        value = node.args[0] if node.args else None
        if graph.weight_of(node) is not None and isinstance(value, Node) and value.op in ("call_function", "call_module"):
            holders.setdefault(value.name, []).append(node.name)
    return holders


def measure_spectra(graph: TrainingGraph, batches: list[Batch], loss: str, tell: Callable[[float], None]) -> dict[str, Spectra]:
    """Mean spectra of every value that may be held in a form."""
    spectra: dict[str, Spectra] = {}
    first_holder = {holders[0]: value for value, holders in holders_of_values(graph).items()}
    nodes = {node.name: node for node in graph.operations}
    done, total = 0, max(1, len(first_holder) * len(batches))

    def observe(node: Node, args: tuple[Any, ...], result: Any) -> None:
        nonlocal done
        if node.name in first_holder and isinstance(args[0], Tensor) and args[0].dim() >= 2:
            x = args[0]
            value = first_holder[node.name]
            spectra.setdefault(value, _nothing_known(node, x, args[1], result, bounds_of(nodes[value]))).add(x)
            done += 1
            tell(done / total)

    run = NamedRun(graph.exact_without_dropout, observe)
    with torch.no_grad():
        for batch in batches:
            run.run(*batch.inputs)
    return spectra


def _nothing_known(holder: Node, x: Tensor, weight: Tensor, result: Tensor, bounds: tuple[float, ...]) -> Spectra:
    """Empty spectra of the value that an operation reads, which is in these bounds."""
    feature = x.dim() - 1 if holder.target is linear.linear else 1
    work = result.numel() * weight.numel() / max(1, result.shape[feature] * x.numel())
    if holder.target is conv.convolution and isinstance(settings := holder.args[3], conv.ConvArguments):
        work = conv.products(x.shape, weight.shape, result.shape, settings) / max(1, x.numel())
    return Spectra.of_shape(tuple(x.shape), x.element_size(), feature, bounds, work)


def measure_energies(
    graph: TrainingGraph, batches: list[Batch], loss: str, candidates: dict[str, list[Candidate]], tell: Callable[[float], None]
) -> Energies:
    """Run exact steps and measure, in their backward, what every candidate would lose.

    Raises:
        BadSample: the loss or a gradient is not finite.
    """
    energies = Energies({}, {value: [Measured(c, {}) for c in each] for value, each in candidates.items()})
    holders = {name: value for value, each in holders_of_values(graph).items() if value in candidates for name in each}
    done, total = 0, max(1, len(holders) * len(batches))
    weights = {node.name: str(graph.weight_of(node)) for node in graph.operations if node.name in holders}
    uses = Counter(weights.values())
    first = {each[0] for each in holders_of_values(graph).values()}
    held: dict[str, dict[tuple[int, int], Held]] = {}
    module = graph.exact_without_dropout
    norms = {norm.name for name, norm in graph.folded.items() if name in holders}
    of_norms: dict[str, tuple[tuple[Any, ...], Tensor]] = {}  # what a norm was given beside its input, and the gradient of its result

    def observe(node: Node, args: tuple[Any, ...], result: Any) -> None:
        if node.name in norms:
            result.register_hook(lambda grad: of_norms.update({node.name: (args[1:], grad.clone())}))  # which is written over
        if node.name not in holders or not isinstance(result, Tensor) or not result.requires_grad:
            return
        x, weight, norm = args[0].detach(), weights[node.name], graph.folded.get(node.name)
        value = holders[node.name]

        def compare(grad: Tensor) -> None:
            nonlocal done
            with torch.no_grad():
                gradient, left = _gradient_of(node, args, grad), partial(_features_left, node, args, tuple(grad.shape))
                # The errors of a weight used several times may point the same way: ‖Σ eᵢ‖² ≤ uses · Σ ‖eᵢ‖².
                lost: dict[str, Callable[[Tensor], float]] = {weight: lambda error: uses[weight] * _energy(gradient(error))}
                if norm is not None:
                    of_norm = _folded_gradient(args, *of_norms.pop(norm.name))
                    lost[str(graph.weight_of(norm))] = lambda error: _energy(of_norm(error))
                _compare(energies.candidates[value], held.setdefault(value, {}), energies.batches, weight, x, lost, left)
            if node.name in first:
                del held[value]
            done += 1
            tell(done / total)

        result.register_hook(compare)

    run = NamedRun(module, observe)
    for batch in batches:
        outputs = run.run(*batch.inputs)
        with forward_range(LOSS):
            value = loss_of(loss, outputs, batch.targets)
        if not bool(torch.isfinite(value)):
            raise BadSample(
                f"the loss of the sample is {float(value)}: no gradient can come from it. Check the inputs' scale and the targets."
            )
        value.backward()
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                energy = float(parameter.grad.double().square().sum())
                energies.gradient.setdefault(name, []).append(energy)
                parameter.grad = None
        energies.batches += 1
    if not all(isfinite(energy) for each in energies.gradient.values() for energy in each):
        raise BadSample("a gradient of the sample is not finite. Check the inputs' scale and the model's weights.")
    return energies


def _compare(
    measured: list[Measured],
    held: dict[tuple[int, int], Held],
    batch: int,
    weight: str,
    x: Tensor,
    lost_by: dict[str, Callable[[Tensor], float]],
    left_by: Callable[[Form], int | None],
) -> None:
    """Args:
    held: of `x`, for the number of a candidate and of a kind of pass.
    weight: that trains from `x`. The others of `lost_by` are of norms folded into its operation.
    """
    decompose = _remembering(x)
    for number, each in enumerate(measured):
        each.seconds = 0.0
        for kind, (share, form) in enumerate(_passes(each.candidate.form)):
            started, at = perf_counter(), (number, kind)
            if at not in held:
                held[at] = form.compress(x, decompose)
            left = left_by(form)
            if left is not None and isinstance(form, Projection):
                in_directions = form.restore(held[at], x.shape, 0, x.shape[0], left)
                each.seconds += share * (perf_counter() - started)
                directions = form.directions(held[at], x.shape, left)
                restored = multiply_mode(as_mode(in_directions, left, left + 1), directions).view(x.shape)
            else:
                restored = form.restore(held[at], x.shape, 0, x.shape[0])
                each.seconds += share * (perf_counter() - started)
            error = restored.sub_(x)
            for name, lost in lost_by.items():
                of_batches = (each.lost_energy if name == weight else each.folded_energy).setdefault(name, [])
                if len(of_batches) == batch:
                    of_batches.append(0.0)
                of_batches[batch] += share * lost(error)


def _passes(form: Form) -> list[tuple[float, Form]]:
    """What the passes of a step hold a value in, and the share of them. The directions of passes between two iterations are taken to be no
    better than those that are shipped.
    """
    if isinstance(form, Subspace) and form.every > 1:
        return [(1 / form.every, form), (1 - 1 / form.every, form.between)]
    return [(1.0, form)]


def _energy(gradient: Tensor) -> float:
    return float(gradient.double().square_().sum())


def _remembering(x: Tensor) -> Decompose:
    """Decompose modes of `x` itself once for all candidates; those of their cores, which differ, each time."""
    known: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def decompose(y: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        if y.data_ptr() != x.data_ptr() or y.shape != x.shape:
            return decompose_mode(y, start, stop)
        if (start, stop) not in known:
            known[start, stop] = decompose_mode(y, start, stop)
        return known[start, stop]

    return decompose


def _gradient_of(node: Node, args: tuple[Any, ...], grad: Tensor) -> Callable[[Tensor], Tensor]:
    """The gradient of an operation's weight as a function of its input; of many outputs, that of random combinations of them,
    whose energy is on average the same.
    """
    if node.target is conv.convolution:
        shape, settings = args[1].shape, args[3]
        outputs = settings.outputs(shape)
        if settings.groups == 1 and outputs >= 4 * COMBINATIONS:
            few = torch.einsum("so,bo...->bs...", _signs(outputs, grad), grad)
            sizes = (shape[0], COMBINATIONS) if settings.transposed else (COMBINATIONS, shape[1])
            return lambda x: conv.weight_gradient(few, x, torch.Size((*sizes, *shape[2:])), settings)
        return lambda x: conv.weight_gradient(grad, x, shape, settings)
    if node.target is linear.linear:
        if grad.shape[-1] >= 4 * COMBINATIONS:
            grad = grad @ _signs(grad.shape[-1], grad).mT
        return lambda x: linear.weight_gradient(grad, x)
    return lambda x: norm.weight_gradient(grad, x, args[3], args[4], args[5])


def _folded_gradient(args: tuple[Any, ...], norm: tuple[Any, ...], grad: Tensor) -> Callable[[Tensor], Tensor]:
    """The gradient of a norm's weight as a function of the input of the convolution that the norm is folded into; of many channels,
    that of some drawn by how much they may have of it, whose energy is on average the same.

    Args:
        args, norm: what the convolution was given, and the norm beside its input.
        grad: of the norm's result.
    """
    _, weight, _, settings = args[:4]
    _, _, _, variance, eps = norm[:5]
    scale_O = (variance + eps).rsqrt()
    if settings.groups == 1 and len(scale_O) >= 4 * COMBINATIONS:
        share_O = weight.flatten(1).double().square().sum(1) * grad.double().square().sum([a for a in range(grad.dim()) if a != 1])
        share_O = share_O * scale_O.double().square() + torch.finfo(torch.double).tiny
        drawn = torch.multinomial(share_O, COMBINATIONS, replacement=True, generator=torch.Generator().manual_seed(len(scale_O)))
        weight, grad = weight[drawn], grad[:, drawn]
        scale_O = scale_O[drawn] * (share_O[drawn] / share_O.sum() * COMBINATIONS).rsqrt().to(scale_O.dtype)

    def gradient(x: Tensor) -> Tensor:
        result = conv.convolve(x, weight, None, settings)
        return result.mul_(grad).sum([axis for axis in range(grad.dim()) if axis != 1]).mul_(scale_O)

    return gradient


def _features_left(node: Node, args: tuple[Any, ...], result_shape: tuple[int, ...], form: Form) -> int | None:
    """The mode that an operation leaves in the directions that a form holds it in."""
    if node.target is conv.convolution:
        return conv.features_left(form, tuple(args[0].shape), tuple(args[1].shape), result_shape, args[3])
    if node.target is linear.linear:
        return linear.features_left(form, tuple(args[0].shape), result_shape[-1])
    return None


def _signs(outputs: int, like: Tensor) -> Tensor:
    """Random combinations of outputs, the same every time. Shape (COMBINATIONS, outputs)."""
    signs = torch.randint(2, (COMBINATIONS, outputs), generator=torch.Generator().manual_seed(outputs))
    return (2 * signs - 1).to(like.device, like.dtype).div_(COMBINATIONS**0.5)
