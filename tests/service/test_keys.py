"""With keys, everybody has their own things, within limits; without, the service listens to this machine alone."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from models.base import now
from service.keys import SECONDS_TO_KNOW, Scope, add_key
from tests.service.running import ROOT, Running, problem, running, until

BOTH: tuple[Scope, ...] = ("read", "write")


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "data") as service:
        yield service


def client_of(service: Running, name: str, scopes: tuple[Scope, ...] = BOTH, days: int | None = None, **limits: int) -> httpx.Client:
    with service.context.database.transaction() as session:
        _, secret = add_key(session, name, scopes, now() + timedelta(days=days) if days is not None else None, **limits)
    return httpx.Client(base_url=service.server.address, headers={"authorization": f"Bearer {secret}"}, timeout=60)


def test_once_there_is_a_key_one_is_needed(keyed: Running) -> None:
    assert keyed.client.get("/v1/plans").status_code == 200
    with client_of(keyed, "ann") as ann:
        assert ann.get("/v1/plans").json() == {"plans": []}
        until(lambda: keyed.client.get("/v1/plans").status_code != 200, 3 * SECONDS_TO_KNOW)
        answer = keyed.client.get("/v1/plans")
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer memfit_wrong", "Basic eDp5", ann.headers["authorization"].replace("Bearer", "Basic")):
            problem(keyed.client.get("/v1/plans", headers={"authorization": wrong}), 401, "unauthorized")
        assert keyed.client.get("/healthz").status_code == 200, "health is for everybody"


def test_the_secret_is_not_kept(keyed: Running) -> None:
    with client_of(keyed, "ann") as ann:
        secret = ann.headers["authorization"].removeprefix("Bearer ")
    for file in keyed.context.store.root.rglob("memfit.db*"):
        assert secret.encode() not in file.read_bytes()


def test_scopes_and_ends(keyed: Running) -> None:
    with client_of(keyed, "reader", ("read",)) as reader, client_of(keyed, "old", days=-1) as old:
        assert reader.get("/v1/plans").status_code == 200
        assert "'write'" in problem(reader.post("/v1/models", content=b"x"), 403, "forbidden")["detail"]
        assert "expired" in problem(old.get("/v1/plans"), 401, "unauthorized")["detail"]


def test_everybody_sees_their_own_things(keyed: Running, sample_file: Path) -> None:
    data = sample_file.read_bytes()
    with client_of(keyed, "ann") as ann, client_of(keyed, "bob") as bob, client_of(keyed, "root", ("admin",)) as root:
        place = ann.post("/v1/samples", content=data).raise_for_status().headers["location"]
        problem(bob.get(place), 404, "not-found")
        problem(bob.delete(place), 404, "not-found")
        assert root.get(place).status_code == 200
        before = keyed.files()
        assert bob.post("/v1/samples", content=data).status_code == 200, "the bytes are there once"
        assert keyed.files() == before
        assert ann.delete(place).status_code == 204
        problem(ann.get(place), 404, "not-found")
        assert bob.get(place).status_code == 200, "it is still his"
        upload = bob.post("/v1/uploads", headers={"tus-resumable": "1.0.0", "upload-length": "5"}).headers["location"]
        assert ann.head(upload, headers={"tus-resumable": "1.0.0"}).status_code == 404
        assert bob.get("/v1/usage").json()["stored_bytes"] == len(data) + 5
        assert ann.get("/v1/usage").json()["stored_bytes"] == 0


def test_limits_are_told_with_when_to_try_again(keyed: Running, sample_file: Path) -> None:
    data = sample_file.read_bytes()
    with client_of(keyed, "ann", requests_per_minute=3) as ann, client_of(keyed, "bob", stored_bytes=100, active_jobs=0) as bob:
        assert [ann.get("/v1/plans").status_code for _ in range(3)] == [200] * 3
        answer = ann.get("/v1/plans")
        assert problem(answer, 429, "too-many-requests")["limit"] == "requests_per_minute"
        assert 1 <= int(answer.headers["retry-after"]) <= 20
        answer = bob.post("/v1/samples", content=data)
        assert problem(answer, 429, "too-many-requests")["limit"] == "stored_bytes"
        assert int(answer.headers["retry-after"]) > 0
        usage = bob.get("/v1/usage").json()
        assert (usage["key"], usage["stored_bytes_limit"], usage["active_jobs_limit"]) == ("bob", 100, 0)


@pytest.mark.slow
def test_jobs_are_limited_and_of_those_who_asked(keyed: Running, model_file: Path, sample_file: Path) -> None:
    with client_of(keyed, "ann", active_jobs=1) as ann, client_of(keyed, "bob") as bob:
        model = ann.post("/v1/models", content=model_file.read_bytes()).raise_for_status().json()["id"]
        sample = ann.post("/v1/samples", content=sample_file.read_bytes()).raise_for_status().json()["id"]
        body = {"model": model, "sample": sample}
        problem(bob.post("/v1/profiles", json=body), 404, "not-found")
        problem(bob.post("/v1/plans", json=body | {"budget": "50%"}), 404, "not-found")
        plan = ann.post("/v1/plans", json=body | {"budget": "50%"}).raise_for_status().json()
        for path in (
            f"/v1/plans/{plan['id']}",
            f"/v1/plans/{plan['id']}/checkpoint",
            f"/v1/profiles/{plan['profile']}",
            f"/v1/jobs/{plan['job']}",
        ):
            problem(bob.get(path), 404, "not-found")
        problem(bob.delete(f"/v1/jobs/{plan['job']}"), 404, "not-found")
        assert bob.get("/v1/plans").json() == {"plans": []}
        assert problem(ann.post("/v1/plans", json=body | {"budget": "60%"}), 429, "too-many-requests")["limit"] == "active_jobs"
        problem(ann.delete(f"/v1/plans/{plan['id']}"), 409, "in-use")
        problem(ann.delete(f"/v1/models/{model}"), 409, "in-use")
        ann.delete(f"/v1/jobs/{plan['job']}").raise_for_status()
        for path in (f"/v1/plans/{plan['id']}", f"/v1/profiles/{plan['profile']}", f"/v1/models/{model}", f"/v1/samples/{sample}"):
            assert ann.delete(path).status_code == 204
            problem(ann.get(path), 404, "not-found")
        problem(ann.get(f"/v1/jobs/{plan['job']}"), 404, "not-found")


def memfit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "service.cli", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_keys_are_made_shown_and_revoked_from_the_command_line(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    refused = memfit("serve", "--host", "0.0.0.0", "--port", "0", *data)
    assert refused.returncode == 1
    assert "memfit keys add" in refused.stderr
    made = memfit("keys", "add", "ann", "--days", "30", *data)
    secret = made.stdout.strip()
    assert secret.startswith("memfit_")
    listed = memfit("keys", "list", *data).stdout
    assert "ann" in listed
    assert secret not in listed
    with running(tmp_path / "data") as service:
        ann = httpx.Client(base_url=service.server.address, headers={"authorization": f"Bearer {secret}"})
        assert ann.get("/v1/plans").status_code == 200
        id = made.stderr.split("(")[1].split(")")[0]
        assert memfit("keys", "revoke", id, *data).returncode == 0
        until(lambda: ann.get("/v1/plans").status_code != 200, 3 * SECONDS_TO_KNOW)
        assert "revoked" in problem(ann.get("/v1/plans"), 401, "unauthorized")["detail"]
        ann.close()
    assert memfit("keys", "revoke", "nothing", *data).returncode == 2
    assert memfit("keys", "add", "x", "--scope", "everything", *data).returncode == 2
