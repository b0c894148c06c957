"""How long the service takes to answer with a plan from a stored profile: `python -m bench.answers`.

ResNet-18 at 8×3×224×224. The time is that of the POST as a client sees it; the choice is in its answer. Proving goes on in the
job, which is cancelled here.
"""

import os
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import httpx

from bench import models
from demo.client import accepted, progress
from demo.server import running

MODEL = "resnet_18"
BUDGETS = ("90%", "75%", "60%", "50%", "40%", "35%", "25%")
REPEATS = 3


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models.export(MODEL, folder / "model.pt2")
        models.write_sample(MODEL, folder / "sample.safetensors")
        with running(folder / "data", folder / "log", os.environ) as address, httpx.Client(base_url=address, timeout=120.0) as client:
            profile = stored_profile(client, folder)
            for budget in BUDGETS:
                seconds = [answer_seconds(client, profile, budget) for _ in range(REPEATS)]
                print(f"{budget:>5}: {median(seconds):.2f} s (median of {REPEATS}, worst {max(seconds):.2f} s)", flush=True)


def stored_profile(client: httpx.Client, folder: Path) -> str:
    """Upload model and sample and have them profiled."""
    ids = {
        kind: accepted(client.post(f"/v1/{kind}s", content=(folder / file).read_bytes())).json()["id"]
        for kind, file in (("model", "model.pt2"), ("sample", "sample.safetensors"))
    }
    profile = accepted(client.post("/v1/profiles", json=ids)).json()
    for _ in progress(client, profile["job"]):
        pass
    return str(profile["id"])


def answer_seconds(client: httpx.Client, profile: str, budget: str) -> float:
    """Seconds until the answer to a plan request; the job that would prove the plan is cancelled."""
    request = {"profile": profile, "budget": budget, "optimizer": {"name": "sgd", "momentum": 0.9}}
    started = perf_counter()
    plan = accepted(client.post("/v1/plans", json=request)).json()
    seconds = perf_counter() - started
    if plan["state"] != "infeasible":
        accepted(client.delete(f"/v1/jobs/{plan['job']}"))
        while accepted(client.get(f"/v1/jobs/{plan['job']}")).json()["state"] in ("queued", "running"):
            sleep(0.05)
    return seconds


if __name__ == "__main__":
    main()
