"""Several machines on one Postgres: an API and workers that share jobs, files and news."""

import signal
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest

from tests.service.clustered import Clustered, clustered, errors_of
from tests.service.postgres import Postgres, needs_postgres, new_database, postgres
from tests.service.running import FINISHED, follow, stage_children, until

pytestmark = [pytest.mark.slow, needs_postgres]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def service(server: Postgres, tmp_path: Path) -> Iterator[Clustered]:
    with new_database(server) as url, clustered(tmp_path, url) as service:
        service.add_api()
        yield service


def ask(client: httpx.Client, model_file: Path, sample_file: Path, **request: Any) -> Any:
    import json

    parts: Any = {"model": model_file.read_bytes(), "sample": sample_file.read_bytes(), "request": (None, json.dumps(request))}
    return client.post("/v1/plans", files=parts).raise_for_status().json()


def state(client: httpx.Client, plan: Any) -> str:
    return str(client.get(f"/v1/plans/{plan['id']}").raise_for_status().json()["state"])


def stages(service: Clustered) -> list[int]:
    return [pid for folder in (service.folder / "data").glob("process-*/work/*") for pid in stage_children(folder)]


def test_a_plan_is_carried_from_the_api_to_a_worker_and_back(service: Clustered, model_file: Path, sample_file: Path) -> None:
    worker = service.add_worker("--concurrency", "2")
    with service.client as client:
        plan = ask(client, model_file, sample_file, budget="80%")
        events = list(follow(client, plan["job"]))
        assert events[-1][0] == "end" and events[-1][1]["state"] == "succeeded", events[-1]
        assert {event["stage"] for _, event in events} >= {"profiling", "verifying"}, "news of every stage come from the worker"
        done = client.get(f"/v1/plans/{plan['id']}").json()
        assert done["state"] == "ready" and done["certificate"]["measured_peak_bytes"] <= done["budget_bytes"]
        checkpoint = client.get(f"/v1/plans/{plan['id']}/checkpoint")
        assert checkpoint.status_code == 200 and len(checkpoint.content) > 1000
        assert client.get(f"/v1/jobs/{plan['job']}/logs").status_code == 200
        second = client.post("/v1/plans", json={"profile": done["profile"], "budget": "70%"}).raise_for_status().json()
        until(lambda: state(client, second) in FINISHED)
        assert state(client, second) == "ready"
    assert errors_of(worker) == errors_of(service.members[0]) == []


def test_a_job_is_cancelled_wherever_it_runs(service: Clustered, model_file: Path, sample_file: Path) -> None:
    service.add_worker()
    with service.client as client:
        plan = ask(client, model_file, sample_file, budget="80%")
        until(lambda: bool(stages(service)))
        begin = monotonic()
        assert client.delete(f"/v1/jobs/{plan['job']}").json()["state"] == "cancelled"
        until(lambda: not stages(service))
        assert monotonic() - begin < 2
        assert state(client, plan) == "cancelled"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_another_worker_takes_over(how: signal.Signals, service: Clustered, model_file: Path, sample_file: Path) -> None:
    first = service.add_worker()
    with service.client as client:
        plan = ask(client, model_file, sample_file, budget="1 KiB")  # its answer takes a profile, and no more time
        until(lambda: bool(stages(service)))
        first.end(how)
        until(lambda: not stages(service))
        job = client.get(f"/v1/jobs/{plan['job']}").json()
        assert (job["state"], job["attempt"]) == ("queued" if how == signal.SIGTERM else "running", 1)
        service.add_worker()
        until(lambda: state(client, plan) in FINISHED)
        assert state(client, plan) == "infeasible"
        assert client.get(f"/v1/jobs/{plan['job']}").json()["attempt"] == 2


def test_a_worker_runs_only_the_jobs_of_its_queue(service: Clustered, model_file: Path, sample_file: Path) -> None:
    service.add_worker("--queue", "gpu")
    with service.client as client:
        plan = ask(client, model_file, sample_file, budget="1 KiB")
        with pytest.raises(AssertionError):
            until(lambda: state(client, plan) != "queued", 5)
        service.add_worker("--queue", "cpu")
        until(lambda: state(client, plan) in FINISHED)
