"""Uploads that were cut go on where they ended (tus 1.0)."""

import errno
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from tests.service.running import Running, problem, running, until

TUS = {"tus-resumable": "1.0.0"}
PIECE = TUS | {"content-type": "application/offset+octet-stream"}


def begin(service: Running, size: int) -> str:
    answer = service.client.post("/v1/uploads", headers=TUS | {"upload-length": str(size)})
    assert (answer.status_code, answer.headers["tus-resumable"], answer.content) == (201, "1.0.0", b"")
    return answer.headers["location"]


def send(service: Running, place: str, offset: int, data: bytes, **headers: str) -> Any:
    return service.client.patch(place, content=data, headers=PIECE | {"upload-offset": str(offset)} | headers)


def offset(service: Running, place: str) -> int:
    answer = service.client.head(place, headers=TUS)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    return int(answer.headers["upload-offset"])


def test_what_is_spoken_is_described(service: Running) -> None:
    answer = service.client.options("/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert "creation" in answer.headers["tus-extension"]
    assert int(answer.headers["tus-max-size"]) > 0


def test_a_sample_in_pieces_is_that_sample(service: Running, sample_file: Path) -> None:
    data = sample_file.read_bytes()
    place = begin(service, len(data))
    id = place.rpartition("/")[2]
    assert offset(service, place) == 0
    first = send(service, place, 0, data[:1000])
    assert (first.status_code, first.headers["upload-offset"]) == (204, "1000")
    document = problem(send(service, place, 0, data[:1000]), 409, "upload-conflict")
    assert document["offset"] == 1000
    problem(service.client.post("/v1/samples", json={"upload": id}), 409, "upload-conflict")
    assert send(service, place, 1000, data[1000:]).status_code == 204
    taken = service.client.post("/v1/samples", json={"upload": id})
    assert taken.status_code == 201, taken.text
    assert taken.json()["bytes"] == len(data)
    assert service.client.head(place, headers=TUS).status_code == 404, "it is gone"
    assert service.client.post("/v1/samples", content=data).json()["id"] == taken.json()["id"]


def test_an_upload_that_is_cut_goes_on(service: Running, model_file: Path) -> None:
    data = model_file.read_bytes()
    place = begin(service, len(data))
    share = len(data) * 6 // 10
    with service.connect() as client:
        fields = PIECE | {"host": "x", "upload-offset": "0", "content-length": str(len(data))}
        client.sendall(f"PATCH {place} HTTP/1.1\r\n".encode() + "".join(f"{k}: {v}\r\n" for k, v in fields.items()).encode() + b"\r\n")
        client.sendall(data[:share])
        sleep(0.5)  # what the server has not read when the connection ends, it never sees
    until(lambda: offset(service, place) == share)
    until(lambda: send(service, place, share, data[share:]).status_code == 204)
    taken = service.client.post("/v1/models", json={"upload": place.rpartition("/")[2]})
    assert taken.status_code in (200, 201), taken.text


def test_a_refused_file_stays_to_be_looked_at_until_it_is_deleted(service: Running) -> None:
    place = begin(service, 5)
    send(service, place, 0, b"hello")
    problem(service.client.post("/v1/models", json={"upload": place.rpartition("/")[2]}), 422, "bad-model")
    assert offset(service, place) == 5
    assert service.client.delete(place, headers=TUS).status_code == 204
    assert service.client.head(place, headers=TUS).status_code == 404
    assert place.removeprefix("/v1/") not in service.files()


def test_what_is_not_spoken_is_refused(service: Running) -> None:
    problem(service.client.post("/v1/uploads", headers={"upload-length": "5"}), 412, "unsupported-protocol")
    problem(service.client.post("/v1/uploads", headers=TUS), 422, "invalid-request")
    problem(service.client.post("/v1/uploads", headers=TUS | {"upload-length": "-5"}), 422, "invalid-request")
    problem(service.client.post("/v1/uploads", headers=TUS | {"upload-length": str(10**15)}), 413, "too-large")
    place = begin(service, 5)
    problem(service.client.patch(place, content=b"x", headers=TUS | {"upload-offset": "0"}), 415, "unsupported-media-type")
    problem(send(service, place, 0, b"too much"), 413, "too-large")
    problem(send(service, "/v1/uploads/nothing", 0, b"x"), 404, "not-found")
    problem(service.client.post("/v1/models", json={"upload": "nothing"}), 404, "not-found")


def test_pieces_are_checked_against_their_digest(service: Running) -> None:
    place = begin(service, 5)
    wrong = {"content-digest": "sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:"}
    problem(send(service, place, 0, b"hello", **wrong), 400, "bad-digest")
    assert offset(service, place) == 0
    data = bytes(range(256)) * 2**14  # four pieces of what is written at once
    place = begin(service, len(data))
    assert send(service, place, 0, data[:1000]).status_code == 204
    problem(send(service, place, 1000, data[1000:], **wrong), 400, "bad-digest")
    assert offset(service, place) == 1000, "nothing is kept of a piece that is not what it should be"


@pytest.mark.slow
def test_an_upload_outlives_the_service(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        place = begin(service, 10)
        send(service, place, 0, b"12345")
    with running(tmp_path / "data") as service:
        assert offset(service, place) == 5
        assert send(service, place, 5, b"67890").headers["upload-offset"] == "10"


def test_a_full_disk_is_a_problem_and_what_came_before_stays(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    place = begin(service, 10)
    send(service, place, 0, b"12345")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("service.store.os.fsync", full)
        problem(send(service, place, 5, b"6"), 507, "storage-full")
        problem(service.client.post("/v1/samples", content=b"x" * 100), 507, "storage-full")
    there = offset(service, place)
    assert there in (5, 6)
    assert send(service, place, there, b"67890"[there - 5 :]).status_code == 204
