"""Seconds and memory of a profile, in plain steps: `python -m bench.profiling`.

ResNet-18 at 8×3×224×224 with the whole menu. Plain steps and the profile each run in a process of their own; memory is the process's
highest resident set. Seconds are the processor's, of one thread, so that other work on the machine changes them little.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import process_time

import torch

from bench import models
from bench.tables import write_between
from memfit.losses import loss_of
from memfit.process_memory import return_freed_memory
from planner.capture import TrainingGraph, capture
from planner.measurement import resident_bytes
from planner.profiling import make_profile
from planner.request import ProfileSettings
from planner.sample import batches_of

STEPS = 5


def plain(graph: TrainingGraph, name: str) -> float:
    """Median seconds of a step, the first left out."""
    case = models.CASES[name]
    batch = batches_of(models.sample(name), graph.inputs, case.loss, case.batch)[0]
    seconds = []
    for _ in range(STEPS):
        started = process_time()
        loss_of(case.loss, graph.module(*batch.inputs), batch.targets).backward()
        graph.module.zero_grad(set_to_none=True)
        seconds.append(process_time() - started)
    return median(seconds[1:])


def profiled(graph: TrainingGraph, name: str) -> float:
    """Seconds of a profile. Stages are told on standard error."""
    started, told = process_time(), ""

    def tell(done: float, stage: str) -> None:
        nonlocal told
        if stage != told:
            print(f"{process_time() - started:6.1f} s {stage}", file=sys.stderr, flush=True)
        told = stage

    make_profile(graph, models.sample(name), ProfileSettings(models.CASES[name].loss, batch_size=models.CASES[name].batch), tell)
    return process_time() - started


def measure(name: str, model: Path, what: str) -> tuple[float, int]:
    """Seconds, and the most resident bytes of a process that does it."""
    command = [sys.executable, "-m", "bench.profiling", "--models", name, "--measure", what, "--file", str(model)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(answer[-2]), int(answer[-1])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--models", nargs="+", choices=list(models.CASES), default=["resnet_18"])
    arguments.add_argument("--measure", choices=("plain", "profile"), help=argparse.SUPPRESS)
    arguments.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.measure:
        torch.set_num_threads(1)
        return_freed_memory()
        graph = capture(torch.export.load(given.file))
        seconds = (plain if given.measure == "plain" else profiled)(graph, given.models[0])
        print(seconds, resident_bytes("VmHWM"))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.models:
            model = Path(folder) / f"{name}.pt2"
            models.export(name, model)
            step, step_bytes = measure(name, model, "plain")
            seconds, profile_bytes = measure(name, model, "profile")
            row = [name, f"{step:.2f} s", f"{seconds:.1f} s", f"{seconds / step:.1f}", f"{profile_bytes / step_bytes:.2f}"]
            rows.append(row)
            print(" | ".join(row), flush=True)
    torch.set_num_threads(1)  # as those processes have
    note = "A profile with the whole menu, against plain steps and their process's highest resident set, by `python -m bench.profiling`."
    write_between("profiling", note, ["model", "plain step", "profile", "time ÷ step", "memory ÷ step"], rows)


if __name__ == "__main__":
    main()
