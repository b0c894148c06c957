"""Jobs can be cancelled, survive their server, and fail in words."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from service.place import DataInUse, owning
from tests.service.running import FINISHED, ROOT, Running, follow, post_plan, problem, running, serving, stage_children, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all servers here: the model is inspected once. Each test has a batch size, so a profile, of its own."""
    return tmp_path_factory.mktemp("data")


def begin(service: Running, model_file: Path, sample_file: Path, **request: Any) -> dict[str, Any]:
    answer = post_plan(service, {"budget": "70%"} | request, model_file.read_bytes(), sample_file.read_bytes())
    plan: dict[str, Any] = answer.raise_for_status().json()
    return plan


def stages_of(service: Running) -> list[int]:
    return [pid for folder in (service.context.store.root / "work").iterdir() for pid in stage_children(folder)]


def profiling(plan: dict[str, Any]) -> bool:
    return bool(plan["state"] == "profiling")


def test_jobs_that_run_and_wait_are_cancelled_and_the_profile_is_measured_after_all(
    data: Path, model_file: Path, sample_file: Path
) -> None:
    with running(data) as service:
        first = begin(service, model_file, sample_file, batch_size=8)
        second = begin(service, model_file, sample_file, batch_size=8, budget="80%")
        assert first["profile"] == second["profile"]
        service.until(f"/v1/plans/{first['id']}", profiling)
        problem(service.client.get(f"/v1/plans/{first['id']}/checkpoint"), 409, "checkpoint-not-ready")
        for plan in (second, first):
            begin_cancelling = monotonic()
            assert service.client.delete(f"/v1/jobs/{plan['job']}").json()["state"] == "cancelled"
            assert service.client.get(f"/v1/plans/{plan['id']}").json()["state"] == "cancelled"
            assert [name for name, _ in follow(service.client, plan["job"])] == ["end"]
        assert service.client.delete(f"/v1/jobs/{first['job']}").status_code == 200, "again changes nothing"
        until(lambda: not stages_of(service))
        assert monotonic() - begin_cancelling < 2
        assert service.client.get(f"/v1/profiles/{first['profile']}").json()["state"] == "cancelled"

        third = begin(service, model_file, sample_file, batch_size=8, budget="1 KiB")
        assert third["profile"] == first["profile"]
        plan = service.until(f"/v1/plans/{third['id']}", lambda plan: plan["state"] in FINISHED)
        assert (plan["state"], plan["budget_bytes"]) == ("infeasible", 1024), plan["problem"]
        assert plan["least_budget_bytes"] > 1024
        assert service.client.get(f"/v1/profiles/{first['profile']}").json()["state"] == "ready"
        assert service.client.get(f"/v1/jobs/{plan['job']}").json()["state"] == "succeeded"
        problem(service.client.delete(f"/v1/jobs/{plan['job']}"), 409, "job-finished")


def test_a_job_that_ran_when_the_server_stopped_is_done_by_the_next(data: Path, model_file: Path, sample_file: Path) -> None:
    with running(data) as service:
        plan = begin(service, model_file, sample_file, batch_size=4, budget="1 KiB")  # its answer takes a profile, and no more time
        service.until(f"/v1/plans/{plan['id']}", profiling)
        with service.client.stream("GET", f"/v1/jobs/{plan['job']}/events") as events:
            lines = events.iter_lines()
            next(lines)
            service.server.should_exit = True
            assert all("event: end" not in line for line in lines), "the stream ends, the job does not"
    with running(data) as service:
        plan = service.until(f"/v1/plans/{plan['id']}", lambda plan: plan["state"] in FINISHED)
        assert plan["state"] == "infeasible", plan["problem"]
        assert service.client.get(f"/v1/profiles/{plan['profile']}").json()["state"] == "ready"


def test_a_server_that_is_killed_loses_nothing(data: Path, model_file: Path, sample_file: Path) -> None:
    with serving(data) as (process, client):
        parts: dict[str, Any] = {"model": model_file.read_bytes(), "sample": sample_file.read_bytes()}
        answer = client.post("/v1/plans", files=parts | {"request": (None, '{"budget": "70%", "batch_size": 2}')})
        plan = answer.raise_for_status().json()
        until(lambda: profiling(client.get(f"/v1/plans/{plan['id']}").json()))
        process.kill()
        process.wait()
    with running(data) as service:
        service.until(f"/v1/plans/{plan['id']}", profiling)
        assert len(list((data / "work").iterdir())) == 1, "what the dead server worked on is gone"
        assert service.client.get(f"/v1/models/{plan['model']}").status_code == 200
        service.client.delete(f"/v1/jobs/{plan['job']}").raise_for_status()


def test_a_stage_that_is_killed_fails_its_job_and_the_service_goes_on(data: Path, model_file: Path, sample_file: Path) -> None:
    with running(data) as service:
        plan = begin(service, model_file, sample_file, batch_size=1)
        service.until(f"/v1/plans/{plan['id']}", profiling)
        until(lambda: bool(stages_of(service)))
        os.kill(stages_of(service)[0], signal.SIGKILL)
        plan = service.until(f"/v1/plans/{plan['id']}", lambda plan: plan["state"] in FINISHED)
        assert (plan["state"], plan["problem"]["type"]) == ("failed", "/problems/out-of-memory")
        job = service.client.get(f"/v1/jobs/{plan['job']}").json()
        assert (job["state"], job["problem"]) == ("failed", plan["problem"])
        assert (service.context.store.root / "logs" / job["problem"]["log"]).exists()
        again = begin(service, model_file, sample_file, batch_size=1)
        assert again["profile"] == plan["profile"]
        service.until(f"/v1/plans/{again['id']}", profiling)
        service.client.delete(f"/v1/jobs/{again['job']}").raise_for_status()


def test_a_data_folder_has_one_server(tmp_path: Path) -> None:
    with owning(tmp_path), pytest.raises(DataInUse, match="--data"), owning(tmp_path):
        pass
    with running(tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", "serve", "--data", tmp_path, "--port", "0"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "another memfit server" in done.stderr
        assert "Traceback" not in done.stderr
