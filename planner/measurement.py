"""Measured steps in this process: `python -m planner.measurement` reads a task as JSON on stdin and writes what it measured.

It is made fresh for one measurement, so that the process's own peak means something, and imports no more than a device would.
Its answer is the last line of standard output.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.fx import GraphModule

import memfit
from memfit.losses import loss_of
from memfit.program import call_with
from memfit.training_step import TrainingStep, make_optimizer
from planner.capture import capture, without_dropout
from planner.named_step import NamedTrainingStep
from planner.plan import Measured
from planner.profile import Live
from planner.record import record
from planner.sample import Batch, batches_of

WARM_UP, TIMED = 2, 5


@dataclass(frozen=True, slots=True)
class Task:
    """What to measure.

    Attributes:
        measure: `plain` (the model as it was) or `planned` (the checkpoint, and its fidelity where it is inside the budget).
        optimizer: name and settings.
        trainable: parameters that fidelity is measured over.
        process_bytes: most that the process may hold; None if only the footprint counts.
    """

    measure: str
    model: str
    checkpoint: str
    sample: str
    loss: str
    batch_norm: str
    batch_size: int
    optimizer: dict[str, Any]
    trainable: list[str]
    budget_bytes: int
    process_bytes: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was measured: a step, its footprint at every moment, and of a planned step inside its budget the fidelity, over all batches
    of the sample and of each.
    """

    step: Measured
    moments: tuple[Live, ...]
    fidelity: float | None = None
    fidelities: tuple[float, ...] = ()


def main() -> None:
    runtime_bytes = resident_bytes("VmRSS")
    given = json.load(sys.stdin)
    if given["measure"] == "runtime":
        json.dump({"runtime_bytes": _runtime_bytes(given["model"])}, sys.stdout)
        return
    task = Task(**given)
    batches = _batches(task)
    answer = _measure(task, batches[0], runtime_bytes)
    holds = answer.step.measured_peak_bytes <= task.budget_bytes
    if task.process_bytes is not None:
        holds = holds and answer.step.process_peak_bytes <= task.process_bytes
    if task.measure == "planned" and holds:
        fidelity, fidelities = _fidelities(task, batches)
        answer = replace(answer, fidelity=fidelity, fidelities=fidelities)
    json.dump(asdict(answer), sys.stdout)


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (highest since the last reset) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not tell {field}")


def forget_highest_resident_bytes() -> None:
    """Let VmHWM begin anew, so that it tells of the steps and not of loading."""
    Path("/proc/self/clear_refs").write_text("5")


def _runtime_bytes(model: str) -> int:
    module = capture(torch.export.load(model), "frozen").module
    return resident_bytes("VmRSS") - sum(_storages(module).values())


def _batches(task: Task) -> list[Batch]:
    graph = capture(torch.export.load(task.model), task.batch_norm)  # type: ignore[arg-type]
    return batches_of(load_file(task.sample), graph.inputs, task.loss, task.batch_size)


def _planned(task: Task) -> memfit.PlannedModule:
    return memfit.load(task.checkpoint)


def _plain(task: Task) -> GraphModule:
    return capture(torch.export.load(task.model), task.batch_norm).module  # type: ignore[arg-type]


def _measure(task: Task, batch: Batch, runtime_bytes: int) -> Answer:
    """The process's peak and the seconds are of steps that run as on a device. The footprint is of another, under the record from its
    model's first step on, so that what that one leaves behind counts; the moments are of one whose operations run one by one.
    """
    step, _ = _fresh_step(task, batch)
    forget_highest_resident_bytes()
    seconds = _seconds(step)
    process_peak_bytes = resident_bytes("VmHWM")
    del step
    step, model = _fresh_step(task, batch)
    static = _storages(model)
    recording = record(step, before=step)
    left = _storages(model)  # the record tells of no release of what is older: what the first step replaced is gone
    static_bytes = batch.bytes + sum(nbytes for where, nbytes in static.items() if where in left)
    measured = Measured(static_bytes + recording.peak_bytes, process_peak_bytes, runtime_bytes, seconds)
    if task.measure == "plain":
        return Answer(measured, ())
    assert isinstance(model, GraphModule)
    named = NamedTrainingStep(model, lr=0.0)
    named(batch.inputs, batch.targets)  # its optimizer makes its state
    moments = record(lambda: named(batch.inputs, batch.targets)).peaks
    there_bytes = static_bytes + recording.start_bytes
    return Answer(measured, tuple(Live(moment, there_bytes + live) for moment, live in moments.items()))


def _fresh_step(task: Task, batch: Batch) -> tuple[Callable[[], object], nn.Module]:
    """A step that has not run yet, and its model."""
    if task.measure == "planned":
        planned = _planned(task)
        planned_step = TrainingStep(planned, lr=0.0)
        return lambda: planned_step(batch.inputs, batch.targets), planned
    plain = _plain(task)
    optimizer = make_optimizer(list(plain.parameters()), task.optimizer, lr=0.0)

    def step() -> None:
        loss_of(task.loss, call_with(plain, batch.inputs), batch.targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, plain


def _seconds(step: Callable[[], object]) -> float:
    for _ in range(WARM_UP):
        step()
    seconds = []
    for _ in range(TIMED):
        started = perf_counter()
        step()
        seconds.append(perf_counter() - started)
    return median(seconds)


def _storages(model: nn.Module) -> dict[int, int]:
    """Bytes of the storages of parameters and buffers, by where they are."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())}


def _fidelities(task: Task, batches: list[Batch]) -> tuple[float, tuple[float, ...]]:
    """1 − Σ‖g − ĝ‖² / Σ‖g‖² over the parameters the plain model trains, dropout off. A frozen parameter's ĝ is 0. Over all batches,
    and of each.
    """
    plain, planned = _plain(task), _planned(task)
    for model in (plain, planned):
        without_dropout(model)
    step = TrainingStep(planned, lr=0.0)
    wanted = set(task.trainable)
    losses, energies = [], []
    for batch in batches:
        lost = total = 0.0
        loss_of(task.loss, call_with(plain, batch.inputs), batch.targets).backward()
        step.backward(batch.inputs, batch.targets)
        exact, ours = _gradients(plain), _gradients(planned)
        for name, gradient in exact.items():
            if name in wanted:
                difference = gradient - ours[name] if name in ours else gradient
                lost += float(difference.double().square().sum())
                total += float(gradient.double().square().sum())
        losses.append(lost)
        energies.append(total)
    return _share_left(sum(losses), sum(energies)), tuple(map(_share_left, losses, energies))


def _share_left(lost: float, total: float) -> float:
    return 1.0 - lost / total if total else 1.0


def _gradients(model: GraphModule) -> dict[str, torch.Tensor]:
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


if __name__ == "__main__":
    main()
