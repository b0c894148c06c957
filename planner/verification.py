"""Prove a plan: run steps of the patched checkpoint, and of the plain model, each in a fresh process, and measure."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from planner.errors import PlannerError
from planner.plan import Certificate, Correction, Measured, Plan, Proof
from planner.profile import Moment, Profile

Progress = Callable[[float, str], None]


def runtime_bytes(model: Path) -> int:
    """What a fresh process holds that has loaded the model, without parameters and buffers."""
    task = {"measure": "runtime", "model": str(model)}
    return int(_measure(task)["runtime_bytes"])


def prove(model: Path, checkpoint: Path, sample: Path, profile: Profile, plan: Plan, progress: Progress) -> Proof:
    """Measure the checkpoint's step; if it is inside the budget, also what is told beside it."""
    task = {
        "model": str(model),
        "checkpoint": str(checkpoint),
        "sample": str(sample),
        "loss": profile.loss,
        "batch_norm": profile.batch_norm,
        "batch_size": profile.whole.batch_size,
        "optimizer": asdict(plan.optimizer),
        "budget_bytes": plan.budget_bytes,
        "process_bytes": plan.budget_bytes + plan.runtime_bytes if plan.budget_scope == "process" else None,
        "trainable": [parameter.name for parameter in plan.parameters if parameter.trainable],
    }
    progress(0.1, "a step of the patched model, and its gradients")
    planned = _measure({**task, "measure": "planned"})
    step = _measured(planned)
    if not plan.holds(step):
        return Proof(step.measured_peak_bytes, None, _corrections(plan, planned["moments"], step))
    progress(0.6, "a step of the plain model")
    plain = _measured(_measure({**task, "measure": "plain"}))
    fidelities = planned["fidelities"]
    certificate = Certificate(
        measured_peak_bytes=step.measured_peak_bytes,
        process_peak_bytes=step.process_peak_bytes,
        runtime_bytes=step.runtime_bytes,
        fidelity=float(planned["fidelity"]),
        step_seconds=step.step_seconds,
        plain=plain,
        host=_host(),
        fidelity_range=(min(fidelities), max(fidelities)),
    )
    return Proof(step.measured_peak_bytes, certificate, ())


def _measure(task: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "planner.measurement"], input=json.dumps(task), capture_output=True, text=True, check=False
    )
    if done.returncode < 0:
        raise PlannerError(
            f"measuring the {task['measure']} step was stopped by signal {-done.returncode}, "
            "probably for memory. Use a smaller batch, or a machine with more.",
            signal=-done.returncode,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise PlannerError(
            f"measuring the {task['measure']} step failed: {lines[-1] if lines else 'without a message'}", stderr=done.stderr[-4000:]
        )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _measured(answer: dict[str, Any]) -> Measured:
    return Measured(**answer["step"])


def _corrections(plan: Plan, moments: list[dict[str, Any]], step: Measured) -> tuple[Correction, ...]:
    """Where the step took more than predicted. What no named moment shows is added to all of those; so is what the process took
    beyond runtime and footprint, where the budget is of the process.
    """
    predicted = {footprint.moment: footprint.total_bytes for footprint in plan.timeline}
    live = {Moment(**each["moment"]): int(each["live_bytes"]) for each in moments}
    unseen = max(0, step.measured_peak_bytes - max(live.values()))
    if plan.budget_scope == "process":
        unseen += max(0, step.process_peak_bytes - plan.runtime_bytes - step.measured_peak_bytes)
    extra = {moment: live[moment] + unseen - predicted[moment] for moment in live if moment in predicted}
    return tuple(Correction(plan.schedule, moment, more) for moment, more in extra.items() if more > 0)


def _host() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
    }
