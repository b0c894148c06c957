"""How the service bears load: `python -m bench.load [ADDRESS]`.

By default it starts `memfit serve`, measures MobileNetV2 at 8×3×224×224 and plans for it, and writes what it finds into docs/results.md.
Then, all on this machine:

1. queries of the stored plan, its profile (state and settings), its job and the list of plans, at a fixed rate while a job measures;
2. the same, as fast as they are answered; and the profile with all that was measured;
3. plans from the stored profile, each answered with its choices and queued;
4. event streams, all open at once on one job, until the job is cancelled and each has heard its end.

Latencies are from the moment a request was due, so a service that falls behind does not look well.
"""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated

import httpx
import typer

from bench import models
from bench.connections import Connection, Pool
from bench.tables import write_between
from demo.client import accepted, progress
from demo.server import running

MODEL = "mobilenet_v2"
RATE = 200.0
SECONDS = 20.0
CONNECTIONS = 16
PLANS, STREAMS = 40, 500
HEADING = ["", "answers", "a second", "p50, ms", "p99, ms", "worst, ms"]


@dataclass(frozen=True)
class Stored:
    """What is asked for: a profile, a plan made of it, its job, and what it was measured on."""

    profile: str
    plan: str
    job: str
    model: str
    sample: str


def main(
    address: Annotated[str | None, typer.Argument(help="A service that runs; by default one is started.")] = None,
    profile: Annotated[str | None, typer.Option(help="A profile that is stored there, with a plan; by default both are made.")] = None,
    seconds: float = SECONDS,
    rate: float = RATE,
    streams: int = STREAMS,
) -> None:
    if address is not None:
        asyncio.run(bench(address, profile, seconds, rate, streams))
        return
    with tempfile.TemporaryDirectory() as name, running(Path(name, "data"), Path(name, "log"), os.environ) as own:
        rows = asyncio.run(bench(own, None, seconds, rate, streams))
    where = f"with {os.cpu_count()} processors, which the client and the job have too"
    note = f"One `memfit serve` with a profile and a plan of {MODEL} at 8×3×224×224, {where}. By `python -m bench.load`."
    write_between("load", note, HEADING, rows)


async def bench(address: str, profile: str | None, seconds: float, rate: float, streams: int) -> list[list[str]]:
    """What was found, a row each."""
    rows: list[list[str]] = []
    with httpx.Client(base_url=address, timeout=600) as client, tempfile.TemporaryDirectory() as folder:
        stored = make_stored(client, Path(folder)) if profile is None else find_stored(client, profile)
        pool = Pool(address, CONNECTIONS)
        profile = f"/v1/profiles/{stored.profile}"
        paths = [f"/v1/plans/{stored.plan}", f"{profile}?measured=false", f"/v1/jobs/{stored.job}", "/v1/plans?limit=20"]
        sizes = [len(await pool.get(path)) for path in paths]
        print("bytes of an answer: " + ", ".join(f"{path.split('/')[2]} {size:,}" for path, size in zip(paths, sizes, strict=True)))
        with measuring(client, stored) as job:
            latencies = await at_rate(pool, paths, rate, seconds)
            rows.append(said(f"queries at {rate:.0f}/s while a job measures", latencies, seconds))
            assert job_state(client, job) == "running", "the job ended too early: give fewer seconds"
        rows.append(said("queries as they are answered", await as_answered(pool, paths, seconds / 2), seconds / 2))
        size = len(await pool.get(profile))
        latencies = await as_answered(pool, [profile], seconds / 2)
        rows.append(said(f"a profile with all that was measured, {size:,} bytes", latencies, seconds / 2))
        began = time.monotonic()
        latencies, jobs = await plans(pool, stored)
        rows.append(said("plans from a stored profile, two at a time", latencies, time.monotonic() - began))
        rows += await event_streams(client, address, jobs[-1], streams)
        for job in jobs:
            client.delete(f"/v1/jobs/{job}")
        await pool.close()
    return rows


def make_stored(client: httpx.Client, folder: Path) -> Stored:
    models.export(MODEL, folder / "model.pt2")
    models.write_sample(MODEL, folder / "sample.safetensors")
    ids = {
        kind: accepted(client.post(f"/v1/{kind}s", content=(folder / file).read_bytes())).json()["id"]
        for kind, file in (("model", "model.pt2"), ("sample", "sample.safetensors"))
    }
    plan = accepted(client.post("/v1/plans", json=ids | {"budget": "50%"})).json()
    for _ in progress(client, plan["job"]):
        pass
    plan = accepted(client.get(f"/v1/plans/{plan['id']}")).json()
    assert plan["state"] == "ready", plan["problem"]
    return Stored(plan["profile"], plan["id"], plan["job"], ids["model"], ids["sample"])


def find_stored(client: httpx.Client, profile: str) -> Stored:
    """The newest plan of a profile that is ready."""
    plans = accepted(client.get("/v1/plans", params={"limit": 1000})).json()["plans"]
    id = next(plan["id"] for plan in plans if plan["profile"] == profile and plan["state"] == "ready")
    plan = accepted(client.get(f"/v1/plans/{id}")).json()
    return Stored(profile, id, plan["job"], plan["model"], plan["sample"])


class measuring:
    """Within the block, a job measures."""

    def __init__(self, client: httpx.Client, stored: Stored) -> None:
        self._client, self._stored = client, stored

    def __enter__(self) -> str:
        settings = {"model": self._stored.model, "sample": self._stored.sample, "batch_size": 7}
        self._job = str(accepted(self._client.post("/v1/profiles", json=settings)).json()["job"])
        while job_state(self._client, self._job) == "queued":
            time.sleep(0.1)
        return self._job

    def __exit__(self, *_: object) -> None:
        self._client.delete(f"/v1/jobs/{self._job}")


def job_state(client: httpx.Client, job: str) -> str:
    return str(client.get(f"/v1/jobs/{job}").json()["state"])


async def at_rate(pool: Pool, paths: list[str], rate: float, seconds: float) -> list[float]:
    """Latencies of requests that are sent at a rate, whatever becomes of those before."""

    async def ask(path: str, due: float) -> float:
        await asyncio.sleep(due - time.monotonic())
        await pool.get(path)
        return time.monotonic() - due

    begin = time.monotonic() + 0.1
    count = int(rate * seconds)
    return await asyncio.gather(*(ask(path, begin + number / rate) for number, path in zip(range(count), cycle(paths), strict=False)))


async def as_answered(pool: Pool, paths: list[str], seconds: float) -> list[float]:
    """Latencies of requests of which there is always one on every connection."""
    latencies: list[float] = []
    end = time.monotonic() + seconds

    async def ask(path: str) -> None:
        while (begin := time.monotonic()) < end:
            await pool.get(path)
            latencies.append(time.monotonic() - begin)

    await asyncio.gather(*(ask(path) for _, path in zip(range(CONNECTIONS), cycle(paths), strict=False)))
    return latencies


async def plans(pool: Pool, stored: Stored) -> tuple[list[float], list[str]]:
    """Latencies of plans that are asked for two at a time, and their jobs."""
    jobs: list[str] = []
    latencies: list[float] = []

    async def ask(shares: range) -> None:
        for share in shares:
            begin = time.monotonic()
            answer = json.loads(await pool.post("/v1/plans", {"profile": stored.profile, "budget": f"{share}%"}))
            latencies.append(time.monotonic() - begin)
            if answer["job"] is not None:
                jobs.append(answer["job"])

    await asyncio.gather(ask(range(51, 51 + PLANS, 2)), ask(range(52, 52 + PLANS, 2)))
    return latencies, jobs


async def event_streams(client: httpx.Client, address: str, job: str, count: int) -> list[list[str]]:
    """Open streams of a job that waits, all at once; cancel it; every stream must hear of both."""
    connections = [Connection(address) for _ in range(count)]
    first, opened = await gathered(connections, lambda each: each.open_stream(f"/v1/jobs/{job}/events"))
    assert all(b"event: progress" in text for text in first), "a stream begins without the job's state"
    cancelling = asyncio.create_task(asyncio.to_thread(client.delete, f"/v1/jobs/{job}"))
    rest, heard = await gathered(connections, lambda each: each.rest())
    await cancelling
    assert all(b"event: end" in text for text in rest), "a stream ends without the job's end"
    return [
        said("event streams opened at once, until the first event", opened, max(opened)),
        said("the same, until they hear of the job's cancelling", heard, max(heard)),
    ]


async def gathered(connections: list[Connection], ask: Callable[[Connection], Awaitable[bytes]]) -> tuple[list[bytes], list[float]]:
    """The answers on all connections at once, and how long each took."""
    begin = time.monotonic()

    async def timed(connection: Connection) -> tuple[bytes, float]:
        return await ask(connection), time.monotonic() - begin

    answers = await asyncio.gather(*map(timed, connections))
    return [text for text, _ in answers], [seconds for _, seconds in answers]


def said(what: str, latencies: list[float], seconds: float) -> list[str]:
    """A row of the table, printed."""
    ordered = sorted(latencies)
    p50, p99, worst = (1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99, 1.0))
    row = [what, f"{len(ordered):,}", f"{len(ordered) / seconds:.1f}", f"{p50:.1f}", f"{p99:.1f}", f"{worst:.1f}"]
    print(", ".join(f"{name} {value}" if name else value for name, value in zip(HEADING, row, strict=True)), flush=True)
    return row


if __name__ == "__main__":
    typer.run(main)
