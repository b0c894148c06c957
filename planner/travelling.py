"""What the gradients of all parameters lose where an operation's input is held in few bits, and its gradient worked out from that.

Unlike the error of a weight's gradient, this one travels: the operation passes a gradient on, and every parameter before it
feels the difference. Backward is linear, so the difference itself goes back through the exact step, once for each
operation, input and form; its energy in each parameter is what is lost there.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from memfit.forms import Int4, Int8
from memfit.forms.quantised import GROUP
from memfit.losses import loss_of
from memfit.operators.again import Again
from memfit.overwriting import changes_its_input
from planner.capture import NamedRun, TrainingGraph, without_dropout
from planner.fidelity import Measured
from planner.sample import Batch
from planner.techniques import Candidate, candidate

SAMPLES = 2  # of the batch, where samples do not touch one another: the errors of the others are as large, and independent

Travelled = dict[tuple[str, str], list[Measured]]  # for a value and an operation that reads it, its forms in order of bytes


class _Seen:
    """An operation of the step that ran: its own tensors, with the graph that made them, and its result."""

    def __init__(self, operation: Again, tensors: list[Tensor | None], result: Tensor) -> None:
        self.operation, self.tensors, self.result = operation, tensors, result
        self.wanted = tuple(tensor is not None and tensor.requires_grad for tensor in tensors)

    def gradients(self, grad: Tensor, at: int | None = None, instead: Tensor | None = None) -> list[Tensor | None]:
        """Of its own tensors, one of them replaced."""
        return self.operation.gradients([instead if n == at else tensor for n, tensor in enumerate(self.tensors)], self.wanted, grad)


def measure_travelling(graph: TrainingGraph, batch: Batch, loss: str, apart: bool, tell: Callable[[float], None]) -> Travelled:
    """Measure every operation that may work itself out again, for every input and form.

    Args:
        apart: samples do not touch one another, so a few of them tell.
    """
    some = batch.first(min(SAMPLES, batch.samples)) if apart else batch
    share = some.samples / batch.samples
    inputs = {node.name: graph.repeated[node.name] for node in graph.operations if node.name in graph.repeated}
    inputs = {name: each for name, each in inputs.items() if not _is_changed(name, graph)}
    module = without_dropout(graph.rewritten(replace(graph.exact_recipe(loss), masks=tuple(inputs))))
    parameters = dict(module.named_parameters())
    seen: dict[str, _Seen] = {}

    def observe(node: Node, args: tuple[Any, ...], result: Any) -> None:
        if node.name in inputs and isinstance(result, Tensor) and result.requires_grad:
            operation = module.get_submodule(str(node.target))
            assert isinstance(operation, Again)
            seen[node.name] = _Seen(operation, list(args[: len(operation.tensors)]), result)

    value = loss_of(loss, NamedRun(module, observe).run(*some.inputs), some.targets)
    if not seen:
        return {}
    outputs = [each.result for each in seen.values()]
    grads: tuple[Tensor | None, ...] = torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True)
    travelled: Travelled = {}
    for done, ((name, each), grad) in enumerate(zip(seen.items(), grads, strict=True)):
        if grad is None:
            continue
        exact = each.gradients(grad)
        for at, x in enumerate(inputs[name]):
            tensor = each.tensors[at]
            if x.op == "placeholder" or tensor is None or prod(tensor.shape[1:]) < GROUP // 4:
                continue
            whole = (batch.samples, *tensor.shape[1:])
            for form in (Int4(), Int8()):
                started = perf_counter()
                restored = form.restore(form.compress(tensor.detach()), tensor.shape, 0, tensor.shape[0])
                seconds = (perf_counter() - started) / share
                errors = [None if g is None or e is None else g - e for g, e in zip(each.gradients(grad, at, restored), exact, strict=True)]
                lost = {n: [share * energy] for n, energy in _energies(each, errors, parameters).items()}
                travelled.setdefault((x.name, name), []).append(Measured(_candidate(form, whole, tensor), lost, seconds))
        tell((done + 1) / len(seen))
    return travelled


def _candidate(form: Int4 | Int8, shape: tuple[int, ...], tensor: Tensor) -> Candidate:
    return candidate(form, shape, tensor.element_size())


def _energies(seen: _Seen, errors: list[Tensor | None], parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Energy of an error in each parameter: what came to the operation's own, and what its inputs carry on."""
    carried = [(tensor, error) for tensor, error in zip(seen.tensors, errors, strict=True) if tensor is not None and error is not None]
    if not carried:
        return {}
    tensors, differences = zip(*carried, strict=True)
    found = torch.autograd.grad(tensors, list(parameters.values()), differences, retain_graph=True, allow_unused=True)
    energies = {name: float(g.double().square().sum()) for name, g in zip(parameters, found, strict=True) if g is not None}
    return {name: energy for name, energy in energies.items() if energy > 0}


def _is_changed(name: str, graph: TrainingGraph) -> bool:
    node = next(node for node in graph.operations if node.name == name)
    return any(changes_its_input(user, graph.module) for user in node.users)
