"""With keys, everybody has their own things, within limits; without, the service listens to this machine alone."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from models import HoldingRecord, KeyRecord, ModelRecord, PlanRecord, ProfileRecord, SampleRecord
from models.base import now
from service.access import check_jobs, largest_stored, stored_bytes
from service.database import Database
from service.keys import SECONDS_TO_KNOW, Caller, NoKeys, Scope, add_key, check_keys_for
from service.rates import TooMany
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


@pytest.mark.parametrize(
    ("host", "own"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "::1234", "10.0.0.1", "localhost.example.org", "127.example.org", "memfit.local")),
    ],
)
def test_only_addresses_of_this_machine_alone_need_no_key(tmp_path: Path, host: str, own: bool) -> None:
    database = Database(f"sqlite:///{tmp_path / 'memfit.db'}")
    database.migrate()
    with database.reading() as session, nullcontext() if own else pytest.raises(NoKeys, match="memfit keys add"):
        check_keys_for(session, host)
    database.close()


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
        usage = bob.get("/v1/usage").json()
        assert usage["stored_bytes"] == len(data) + 5
        things = [("sample", place.rpartition("/")[2], len(data)), ("upload", upload.rpartition("/")[2], 5)]
        assert [(thing["kind"], thing["id"], thing["bytes"]) for thing in usage["largest"]] == things
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
        assert usage["largest"] == []


def test_what_one_has_costs_nothing_again_and_many_at_once_are_held_to_the_limit(keyed: Running, sample_file: Path) -> None:
    data = sample_file.read_bytes()
    others = [data[:-1] + bytes([last]) for last in range(1, 7)]  # as many bytes, as good
    with client_of(keyed, "ann", stored_bytes=len(data) * 5 // 2) as ann:
        assert [ann.post("/v1/samples", content=data).status_code for _ in range(3)] == [201, 200, 200]
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda each: ann.post("/v1/samples", content=each), others))
        assert sorted(answer.status_code for answer in answers) == [201, *5 * [429]]
        assert ann.get("/v1/usage").json()["stored_bytes"] == 2 * len(data)
        length = {"tus-resumable": "1.0.0", "upload-length": str(len(data))}
        assert problem(ann.post("/v1/uploads", headers=length), 429, "too-many-requests")["limit"] == "stored_bytes"
        assert ann.delete(f"/v1/samples/{ann.post('/v1/samples', content=data).json()['id']}").status_code == 204
        place = ann.post("/v1/uploads", headers=length).headers["location"]
        piece = {"tus-resumable": "1.0.0", "upload-offset": "0", "content-type": "application/offset+octet-stream"}
        assert ann.patch(place, content=data, headers=piece).status_code == 204
        assert ann.post("/v1/samples", json={"upload": place.rpartition("/")[2]}).status_code == 201, "it is not counted twice"
        assert ann.get("/v1/usage").json()["stored_bytes"] == 2 * len(data)
        with keyed.context.database.reading() as session:
            assert not session.scalars(select(HoldingRecord).where(HoldingRecord.kind == "upload")).all()


def test_who_has_more_than_they_may_begins_no_job(keyed: Running) -> None:
    """Profiles and checkpoints count, too."""
    client_of(keyed, "ann", stored_bytes=100).close()
    with keyed.context.database.transaction() as session:
        key = session.scalars(select(KeyRecord)).one()
        session.add_all([ModelRecord(digest="m", bytes=30, summary_json="{}"), SampleRecord(digest="s", bytes=30, summary_json="{}")])
        session.flush()
        session.add(profile := ProfileRecord(model_digest="m", sample_digest="s", loss="mse", batch_norm="frozen", batch_size=1))
        profile.content_bytes = 30
        session.flush()
        session.add(plan := PlanRecord(profile_id=profile.id, request_json="{}", checkpoint_bytes=20, state="ready"))
        session.flush()
        for kind, id in (("model", "m"), ("sample", "s"), ("profile", profile.id), ("plan", plan.id)):
            session.add(HoldingRecord(key_id=key.id, kind=kind, subject_id=id))
        session.flush()
        assert stored_bytes(session, Caller(key)) == 110
        assert [(kind, bytes) for kind, _, bytes in largest_stored(session, Caller(key), 3)] == [
            ("model", 30),
            ("profile", 30),
            ("sample", 30),
        ]
        with pytest.raises(TooMany, match="/v1/usage"):
            check_jobs(session, Caller(key))
        plan.checkpoint_bytes = 0
        session.flush()
        check_jobs(session, Caller(key))
        session.rollback()


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
