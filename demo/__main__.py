"""The whole path on real data: train, export, plan over HTTP, fine-tune inside the budget, compare."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import httpx
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from demo import client, data, server, training
from demo.finetune import BATCH_SIZE, MOMENTUM, Method, Outcome
from demo.report import mebibytes, table

DIRECTORY = Path(".demo")
MODEL, SAMPLE, CHECKPOINT = (DIRECTORY / name for name in ("digits.pt2", "sample.safetensors", "planned.pt2"))
REQUEST = {"budget": "25%", "optimizer": {"name": "sgd", "momentum": MOMENTUM}, "loss": "cross_entropy", "batch_norm": "frozen"}
# One thread, as on a small device: tensors are so small here that a second gains nothing, and two that wait for one another lose much.
THREADS = 1
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": str(THREADS), "KINETO_LOG_LEVEL": "99"}  # the latter keeps the profiler from printing

console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def prepare() -> None:
    """Train the network, show what the shift costs it, and write model and sample."""
    digits = data.load()
    console.print(f"Training a small MobileNetV2 on {len(digits.source)} handwritten digits …")
    net = training.train(digits.source)
    upright, turned = (training.accuracy(net, part) for part in (digits.source_held_out, digits.held_out))
    console.print(f"  it recognises {upright:.1%} of upright digits, and {turned:.1%} of the device's, which are turned and noisy")
    training.export(net, MODEL)
    training.write_sample(digits.device.part(0, BATCH_SIZE), SAMPLE)


def follow(service: httpx.Client, job: str) -> None:
    """Show a job's progress, one bar a stage."""
    columns = TextColumn("  {task.fields[stage]:<10}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console) as bars:
        stages: dict[str, TaskID] = {}
        for event in client.progress(service, job):
            stage = event["stage"]
            if stage == "queued":
                continue
            if stage not in stages:
                for earlier in stages.values():
                    bars.update(earlier, completed=1)
                    bars.stop_task(earlier)
                stages[stage] = bars.add_task("", total=1, stage=stage)
            bars.update(stages[stage], completed=event["fraction"], description=event["message"])


def fine_tune(method: Method) -> Outcome:
    """Fine-tune in a fresh process, as on a device."""
    source = CHECKPOINT if method == "memfit" else MODEL
    command = [sys.executable, "-m", "demo.finetune", method, str(source)]
    return Outcome(**json.loads(subprocess.check_output(command, env=ENVIRONMENT)))


def main() -> int:
    start = time.monotonic()
    torch.set_num_threads(THREADS)
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir()
    prepare()
    console.print("Starting the service …")
    running = server.running(DIRECTORY / "service", DIRECTORY / "service.log", ENVIRONMENT)
    beside = ThreadPoolExecutor(1)  # the other core
    with beside, running as address, httpx.Client(base_url=address, timeout=60) as service:
        console.print("Fine-tuning without memfit meanwhile, each way in a process of its own …")
        others = {method: beside.submit(fine_tune, method) for method in get_args(Method) if method != "memfit"}
        console.print(f"Asking {address}/v1/plans for a plan in {REQUEST['budget']} of the plain step's peak …")
        plan = client.ask_for_plan(service, MODEL, SAMPLE, REQUEST)
        follow(service, plan["job"])
        plan = client.plan(service, plan["id"])
        if plan["state"] != "ready":
            console.print(f"The plan is {plan['state']}: {plan['problem']['detail']}", markup=False)
            return 1
        client.download_checkpoint(service, plan["id"], CHECKPOINT)
        console.print(f"  {mebibytes(plan['budget_bytes'])} planned with fidelity {plan['fidelity']:.3f}; the checkpoint is {CHECKPOINT}")

        known = {method: other.result() for method, other in others.items()}
        console.print("Fine-tuning the checkpoint in a process of its own …")
        known["memfit"] = fine_tune("memfit")
        outcomes = {method: known[method] for method in get_args(Method)}
        console.print(table(outcomes, plan["budget_bytes"]))
        console.print(f"The plan: {address}/v1/plans/{plan['id']}   All calls: {address}/docs   It took {time.monotonic() - start:.0f} s.")
        if os.environ.get("ONCE") != "1":
            console.print("The service stays up until Ctrl-C.")
            signal.pause()
    return 0 if outcomes["memfit"].peak_bytes <= plan["budget_bytes"] else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the service is ended then too
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # the service has ended by now
        console.print("\nThe service has ended.")
