"""Everything is killed again and again while jobs wait and run: every job ends once, and every file is whole.

A run of `MEMFIT_KILLED_JOBS=200` takes some ten minutes, and how often it kills depends on the machine, so it is asked for by name.
"""

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from models import JobRecord, PlanRecord
from service.database import Database
from service.settings import Settings
from tests.service.clustered import Clustered, clustered
from tests.service.postgres import needs_postgres, new_database, postgres
from tests.service.running import FINISHED

JOBS = int(os.environ.get("MEMFIT_KILLED_JOBS", "0"))
BATCH_SIZES, FIRST_BATCH_SIZE = (8, 7, 6, 5, 4), 3  # each a profile of its own
FEASIBLE = 4  # of the jobs; the others are answered when the profile is there
SECONDS = 900 + 10 * JOBS  # as long as a busy machine may take
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(SECONDS + 120),
    pytest.mark.skipif(JOBS < 40, reason="takes minutes: MEMFIT_KILLED_JOBS=200 make test PYTEST=tests/service/test_killed.py runs it"),
]


@needs_postgres
def test_jobs_end_once_though_workers_api_and_postgres_are_killed(tmp_path: Path, model_file: Path, sample_file: Path) -> None:
    with postgres() as server, new_database(server) as url, clustered(tmp_path, url) as service:

        def restart_postgres() -> None:
            server.kill()
            server.start()

        restarts, worker = [service.add_api().restart, restart_postgres], service.add_worker()
        files = upload(service, model_file, sample_file)
        with service.client as client:
            first, seconds = begin(client, *files)
            worker.end()  # or what is asked for once the profiles are there would need no job
            with killing(restarts, max(4.0, seconds / 6), 1.05) as kills:
                plans = first + [ask(client, number, *files) for number in range(1, JOBS)]
                worker.start()
                restarts += [worker.restart, *(service.add_worker().restart for _ in range(2))]
                states = wait(client, plans)
        service.wait_for_api()
        jobs = check(service, url, tmp_path / "data" / "shared", plans, states)
        print(f"{jobs} jobs; killed {sum(kills.values())} times: API, Postgres and workers {dict(sorted(kills.items()))}")
    assert jobs == JOBS


def test_jobs_end_once_though_the_program_is_killed(tmp_path: Path, model_file: Path, sample_file: Path) -> None:
    """Here plans that are asked for when their profile is there already need no job."""
    with clustered(tmp_path, None, MEMFIT_WORKERS="2") as service:
        program = service.add_alone()
        files = upload(service, model_file, sample_file)

        def restart() -> None:
            program.restart()
            service.wait_for_api()

        with service.client as client:
            first, seconds = begin(client, *files)
            with killing([restart], max(8.0, seconds / 3), 1.3) as kills:
                plans = first + [ask(client, number, *files) for number in range(1, JOBS)]
                states = wait(client, plans)
        service.wait_for_api()
        jobs = check(service, Settings(data_dir=tmp_path / "data").url, tmp_path / "data", plans, states)
        print(f"{jobs} jobs; killed {sum(kills.values())} times")
    assert jobs > JOBS / 2


def check(service: Clustered, url: str, files: Path, plans: list[str], states: list[str]) -> int:
    """Look at what is there when all plans have ended; how many jobs there were."""
    with service.client as client:
        listed = client.get("/v1/plans", params={"limit": 1000}).raise_for_status().json()["plans"]
    assert Counter(states) == {"infeasible": JOBS - FEASIBLE, "ready": FEASIBLE}
    assert sorted(plan["id"] for plan in listed) == sorted(plans), "none twice, none lost"
    database = Database(url)
    with database.reading() as session:
        jobs = session.scalars(select(JobRecord)).all()
        records = session.scalars(select(PlanRecord)).all()
    database.close()
    assert sorted(job.subject_id for job in jobs) == sorted(plan.id for plan in records if plan.job_id is not None), "a plan has one job"
    assert {job.state for job in jobs} == {"succeeded"}
    assert sum(job.interruptions for job in jobs), "nothing was interrupted, so nothing was tested"
    paths = [path for kind in ("programs", "samples", "profiles", "checkpoints") for path in (files / kind).glob("*/[!.]*")]
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.stem for path in paths), "no file is torn"
    checkpoints = {plan.checkpoint_digest for plan in records if plan.state == "ready"}
    assert checkpoints <= {path.stem for path in paths}
    return len(jobs)


@contextmanager
def killing(restarts: list[Callable[[], None]], pause: float, growth: float) -> Iterator[Counter[int]]:
    """Within the block, one after the other is killed by chance; more seldom as time goes by, so that all ends on a busy machine too."""
    over, kills = Event(), Counter[int]()

    def kill() -> None:
        chance, seconds = random.Random(0), pause
        while not over.wait(chance.uniform(0.5, 1.5) * seconds):
            chosen = chance.randrange(len(restarts))
            restarts[chosen]()
            kills[chosen] += 1
            seconds *= growth

    killer = Thread(target=kill)
    killer.start()
    try:
        yield kills
    finally:
        over.set()
        killer.join()


def upload(service: Clustered, model_file: Path, sample_file: Path) -> tuple[str, str]:
    with service.client as client:
        model, sample = (
            client.post(f"/v1/{kind}", content=file.read_bytes()).raise_for_status().json()["id"]
            for kind, file in (("models", model_file), ("samples", sample_file))
        )
    return model, sample


def ask(client: httpx.Client, number: int, model: str, sample: str) -> str:
    """A plan, asked for until it is answered: as the Idempotency-Key is the same, it is made once."""
    budget = "80%" if number % (JOBS // FEASIBLE) == 0 else 1024 + number
    batch_size = BATCH_SIZES[number % len(BATCH_SIZES)] if number else FIRST_BATCH_SIZE
    body = {"model": model, "sample": sample, "batch_size": batch_size, "budget": budget}
    headers = {"idempotency-key": f"plan {number}"}
    answer = persistently(lambda: client.post("/v1/plans", json=body, headers=headers), lambda answer: answer.status_code == 202)
    return str(answer["id"])


def begin(client: httpx.Client, model: str, sample: str) -> tuple[list[str], float]:
    """The first plan, left in peace, and its seconds: a job that is killed ten times ends, so a slow machine needs slow killers."""
    started = monotonic()
    plan = ask(client, 0, model, sample)
    assert wait(client, [plan]) == ["ready"]
    return [plan], monotonic() - started


def wait(client: httpx.Client, plans: list[str]) -> list[str]:
    states = dict.fromkeys(plans, "queued")
    deadline = monotonic() + SECONDS
    while waiting := [plan for plan, state in states.items() if state not in FINISHED]:
        for plan in waiting[:20]:
            states[plan] = persistently(partial(client.get, f"/v1/plans/{plan}"), lambda answer: answer.status_code == 200)["state"]
        assert monotonic() < deadline, Counter(states.values())
        sleep(0.5)
    return list(states.values())


def persistently(request: Callable[[], httpx.Response], good: Callable[[httpx.Response], bool]) -> dict[str, Any]:
    """An answer, however often it takes. What is answered meanwhile must be a problem that passes."""
    deadline = monotonic() + 120
    while True:
        try:
            answer = request()
            if good(answer):
                found: dict[str, Any] = answer.json()
                return found
            assert answer.status_code in (409, 503), answer.text
            assert json.loads(answer.text)["type"] in ("/problems/away", "/problems/request-under-way", "/problems/not-ready")
        except httpx.TransportError:
            pass
        assert monotonic() < deadline
        sleep(0.3)
