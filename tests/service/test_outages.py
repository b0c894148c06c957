"""What a service says while its disk, its database or its object store fails, and that it goes on afterwards, without a restart."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

from tests.service.clustered import Clustered, clustered
from tests.service.postgres import needs_postgres, new_database, postgres
from tests.service.running import FINISHED, ROOT, problem, stage_children, until
from tests.service.s3 import s3

pytestmark = pytest.mark.slow
SECONDS_AWAY = 20.0


def ask(client: httpx.Client, model: Path, sample: Path, request: str) -> Any:
    parts: Any = {"model": model.read_bytes(), "sample": sample.read_bytes(), "request": (None, request)}
    return client.post("/v1/plans", files=parts)


def plan_of(client: httpx.Client, id: str) -> dict[str, Any]:
    plan: dict[str, Any] = client.get(f"/v1/plans/{id}").raise_for_status().json()
    return plan


def ended(client: httpx.Client, id: str) -> dict[str, Any]:
    until(lambda: plan_of(client, id)["state"] in FINISHED)
    return plan_of(client, id)


def works(service: Clustered) -> bool:
    return any(stage_children(folder) for folder in (service.folder / "data").glob("process-*/work/*"))


@needs_postgres
def test_the_database_is_gone_for_twenty_seconds(tmp_path: Path, model_file: Path, sample_file: Path) -> None:
    with postgres() as server, new_database(server) as url, clustered(tmp_path, url) as service, service.client as client:
        processes = [service.add_api().process, service.add_worker().process]
        plan = ask(client, model_file, sample_file, '{"budget": "80%"}').raise_for_status().json()
        until(lambda: works(service))
        server.kill()
        begin = monotonic()
        calls = [
            lambda: client.get(f"/v1/plans/{plan['id']}"),
            lambda: client.get("/v1/plans"),
            lambda: client.post("/v1/plans", json={"model": plan["model"], "sample": plan["sample"], "budget": "1 KiB"}),
            lambda: client.post("/v1/samples", content=sample_file.read_bytes()),
        ]
        while monotonic() - begin < SECONDS_AWAY:
            for call in calls:
                answer = call()
                assert int(answer.headers["retry-after"]) > 0
                assert problem(answer, 503, "away")["what"] == "database"
            problem(client.get("/readyz"), 503, "not-ready")
            assert client.get("/healthz").status_code == 200
            sleep(1)
        server.start()
        service.wait_for_api()
        done = ended(client, plan["id"])
        assert done["state"] == "ready", done["problem"]
        second = client.post("/v1/plans", json={"profile": done["profile"], "budget": "1 KiB"}).raise_for_status().json()
        assert second["state"] == "infeasible"
        third = ask(client, model_file, sample_file, '{"budget": "1 KiB", "batch_size": 4}').raise_for_status().json()
        assert ended(client, third["id"])["state"] == "infeasible", "the worker takes new jobs"
        assert [member.process for member in service.members] == processes
        assert all(process is not None and process.poll() is None for process in processes), "nobody was started again"


@needs_postgres
def test_the_object_store_answers_503(tmp_path: Path, model_file: Path, sample_file: Path) -> None:
    with (
        s3() as bucket,
        postgres() as server,
        new_database(server) as url,
        clustered(tmp_path, url, **bucket.environment) as service,
        service.client as client,
    ):
        service.add_api()
        service.add_worker()
        plan = ask(client, model_file, sample_file, '{"budget": "80%"}').raise_for_status().json()
        until(lambda: works(service))
        bucket.away = True
        new = sample_file.read_bytes()[:-1] + b"\x01"  # other bytes, as good
        answer = client.post("/v1/samples", content=new)
        assert problem(answer, 503, "away")["what"] == "object store"
        until(lambda: bucket.refused > 20)  # of the upload, and of the worker that has measured
        assert plan_of(client, plan["id"])["state"] not in FINISHED, "it waits for the store"
        bucket.away = False
        assert client.post("/v1/samples", content=new).status_code == 201
        done = ended(client, plan["id"])
        assert done["state"] == "ready", done["problem"]
        bucket.away = True
        problem(client.get(f"/v1/plans/{plan['id']}/checkpoint"), 503, "away")
        bucket.away = False
        assert client.get(f"/v1/plans/{plan['id']}/checkpoint").status_code == 200
        kinds = {key.split("/")[1] for key in bucket.objects}
        assert kinds == {"programs", "samples", "profiles", "checkpoints", "logs"}


MOUNT = ["unshare", "--user", "--map-root-user", "--mount"]
DISK_BYTES = 400 * 2**20


def has_small_disks() -> bool:
    with suppress(OSError):
        return not subprocess.run([*MOUNT, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode
    return False


@pytest.fixture
def on_a_small_disk(tmp_path: Path) -> Iterator[tuple[Clustered, Path]]:
    """The program alone, on a disk of its own that is soon full; and how others see that disk."""
    (disk := tmp_path / "disk").mkdir()
    with clustered(tmp_path, None) as service:
        serve = f"{sys.executable} -m service.cli serve --port {service.port} --data {disk}"
        script = f"mount -t tmpfs -o size={DISK_BYTES} tmpfs {disk} && cd {disk} && exec {serve}"
        environment = service.environment | {"MEMFIT_SANDBOX": "off", "PYTHONPATH": str(ROOT)}
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen([*MOUNT, "sh", "-c", script], env=environment, stdout=log, stderr=log)
        try:
            service.wait_for_api()
            yield service, Path(f"/proc/{process.pid}/root{disk}")
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(not has_small_disks(), reason="no user namespaces with mounts here")
def test_the_disk_is_full(on_a_small_disk: tuple[Clustered, Path], model_file: Path, sample_file: Path) -> None:
    service, disk = on_a_small_disk
    with service.client as client:
        plan = ask(client, model_file, sample_file, '{"budget": "1 KiB"}').raise_for_status().json()
        assert ended(client, plan["id"])["state"] == "infeasible"
        fill(disk / "filler")
        problem(client.get("/readyz"), 503, "not-ready")
        assert client.get(f"/v1/plans/{plan['id']}").status_code == 200, "what is there can be read"
        new = sample_file.read_bytes()[:-1] + b"\x01"
        problem(client.post("/v1/samples", content=new), 507, "storage-full")
        problem(ask(client, model_file, sample_file, '{"budget": "1 KiB", "batch_size": 4}'), 507, "storage-full")
        (disk / "filler").unlink()
        assert client.get("/readyz").status_code == 200
        assert client.post("/v1/samples", content=new).status_code == 201
        again = ask(client, model_file, sample_file, '{"budget": "1 KiB", "batch_size": 4}').raise_for_status().json()
        assert ended(client, again["id"])["state"] == "infeasible"
        assert len(client.get("/v1/plans").json()["plans"]) == 2, "nothing is lost, and nothing was kept of what was refused"


def fill(file: Path) -> None:
    """Take all that is left of a disk."""
    with suppress(OSError), file.open("wb", buffering=0) as opened:
        for piece in (2**20, 2**12, 1):
            with suppress(OSError):
                while True:
                    opened.write(os.urandom(piece))
