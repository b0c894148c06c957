"""Measures training steps in a process of its own: `python -m bench.measure {allocator,process} MODEL SAMPLE [CHECKPOINT]`.

Without a checkpoint it is the plain model's step. Of memfit, only what a device calls is used.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

import memfit
from bench import models
from bench.allocator import step_peak_bytes

LR = 0.0  # the same work, but the weights stay: random networks with frozen batch norms would diverge
MOMENTUM = 0.9
TIMED_STEPS = 5


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one training step takes.

    Attributes:
        allocator_peak_bytes: static bytes and the highest sum of allocations, by the allocator's record.
        process_growth_bytes: peak resident set during the step, above that before it.
    """

    allocator_peak_bytes: int
    process_growth_bytes: int
    step_seconds: float


def measure(model: str, sample: Path, checkpoint: Path | None = None, blocks: bool = False) -> Measurement:
    """Measure in two fresh processes: the profiler's own records would count as growth of the process.

    Args:
        blocks: the plain step, but with `torch.utils.checkpoint` on every block.
    """
    process = _in_process("process", model, sample, checkpoint, blocks)
    return Measurement(
        allocator_peak_bytes(model, sample, checkpoint, blocks), int(process["process_growth_bytes"]), process["step_seconds"]
    )


def allocator_peak_bytes(model: str, sample: Path, checkpoint: Path | None = None, blocks: bool = False) -> int:
    """Static bytes and the highest sum of allocations of a step, in a fresh process; `blocks` as for `measure`."""
    return int(_in_process("allocator", model, sample, checkpoint, blocks)["allocator_peak_bytes"])


def _in_process(what: str, model: str, sample: Path, checkpoint: Path | None, blocks: bool = False) -> dict[str, float]:
    files = [str(sample)] if checkpoint is None else [str(sample), str(checkpoint)]
    files += ["--blocks"] * blocks
    output = subprocess.check_output(
        [sys.executable, "-m", "bench.measure", what, model, *files], env=os.environ | {"KINETO_LOG_LEVEL": "99"}
    )
    results: dict[str, float] = json.loads(output)
    return results


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step that has not run yet, and the tensors that are there before it does."""

    step: Callable[[], object]
    static: Callable[[], list[Tensor]]


def prepare(model: str, sample: Path, checkpoint: Path | None, blocks: bool = False) -> Prepared:
    torch.manual_seed(models.SEED)
    tensors = load_file(sample)
    named = {name.removeprefix("inputs."): tensor for name, tensor in tensors.items() if name.startswith("inputs.")}
    inputs = named if not any(name.isdigit() for name in named) else tuple(named[str(index)] for index in range(len(named)))
    targets = tensors.get("targets")
    if checkpoint is not None:
        net: nn.Module = memfit.load(checkpoint)
        planned = memfit.TrainingStep(net, lr=LR)
        step: Callable[[], object] = lambda: planned(inputs, targets)  # noqa: E731
    else:
        net = frozen_batch_norm(models.build(model))
        if blocks:
            models.checkpoint_blocks(net, models.CASES[model].block)
        step = plain_step(net, models.CASES[model].loss, inputs, targets)
    return Prepared(step, lambda: [*net.parameters(), *net.buffers(), *tensors.values()])


def frozen_batch_norm(net: nn.Module) -> nn.Module:
    """In training mode, but for batch norm."""
    net.train()
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return net


def plain_step(
    net: nn.Module, loss_name: str, inputs: dict[str, Tensor] | tuple[Tensor, ...], targets: Tensor | None
) -> Callable[[], object]:
    """One step as torch does it by itself."""
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, foreach=False)

    def loss_of() -> Tensor:
        output = net(**inputs) if isinstance(inputs, dict) else net(*inputs)
        loss: Tensor = functional.cross_entropy(output, targets) if targets is not None else output[loss_name.removeprefix("output:")]
        return loss

    def step() -> None:
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def process_growth(step: Callable[[], object]) -> dict[str, float]:
    """Growth of the process during a step, and the median time of a few more.

    Two steps come before: they load libraries and make the optimizer's state. What they freed goes back to the system, or the process
    would seem to need less than it does.
    """
    step()
    step()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    step()
    growth = status_bytes("VmHWM") - before
    seconds = []
    for _ in range(TIMED_STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"process_growth_bytes": growth, "step_seconds": median(seconds)}


def status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("what", choices=("allocator", "process"))
    arguments.add_argument("model", choices=models.CASES)
    arguments.add_argument("sample", type=Path)
    arguments.add_argument("checkpoint", type=Path, nargs="?")
    arguments.add_argument("--blocks", action="store_true", help="torch.utils.checkpoint on every block")
    given = arguments.parse_args()
    prepared = prepare(given.model, given.sample, given.checkpoint, given.blocks)
    if given.what == "process":
        print(json.dumps(process_growth(prepared.step)))
    else:
        print(json.dumps({"allocator_peak_bytes": step_peak_bytes(prepared.step, prepared.static)}))
