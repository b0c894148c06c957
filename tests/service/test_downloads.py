"""A file and its parts, by ranges and conditions; what is no range is not looked at."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient

from service import problem_answers
from service.digests import BadDigest, expected_digest
from service.download import file_answer
from tests.service.running import Running, problem

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    path = tmp_path_factory.mktemp("download") / "file"
    path.write_bytes(CONTENT)
    app = FastAPI()
    problem_answers.install(app)

    @app.head("/file")
    @app.get("/file")
    def file(request: Request) -> Response:
        return file_answer(request, path, DIGEST, "file")

    return TestClient(app)


def test_a_file_comes_whole_with_its_digest(client: TestClient) -> None:
    answer = client.get("/file")
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["etag"] == f'"{DIGEST}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()}:"
    head = client.head("/file")
    assert (head.status_code, head.content) == (200, b"")
    assert {name: head.headers[name] for name in ("content-length", "etag", "accept-ranges")} == {
        "content-length": str(len(CONTENT)),
        "etag": f'"{DIGEST}"',
        "accept-ranges": "bytes",
    }


@pytest.mark.parametrize(
    ("range", "begin", "end"),
    [("bytes=0-0", 0, 1), ("bytes=100-", 100, None), ("bytes=-5", len(CONTENT) - 5, None), ("bytes=10-99999999", 10, None)],
)
def test_a_part(client: TestClient, range: str, begin: int, end: int | None) -> None:
    answer = client.get("/file", headers={"range": range})
    assert (answer.status_code, answer.content) == (206, CONTENT[begin:end])


NO_RANGES = [
    "bytes",
    "bytes=",
    "bytes=a-b",
    "bytes=5-3",
    "lines=1-2",
    "bytes=1-2-3",
    "bytes=--1",
    "bytes=1-2,",
    "bytes=" + "0-1," * 99 + "0-1",
]


@pytest.mark.parametrize("range", NO_RANGES)
def test_what_is_no_range_is_not_looked_at(client: TestClient, range: str) -> None:
    answer = client.get("/file", headers={"range": range})
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize("range", [f"bytes={len(CONTENT)}-", "bytes=-0", "bytes=999999-9999999"])
def test_ranges_behind_the_end(client: TestClient, range: str) -> None:
    answer = client.get("/file", headers={"range": range})
    problem(answer, 416, "range-not-satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


def test_conditions(client: TestClient) -> None:
    for tags in (f'"{DIGEST}"', f'"x", W/"{DIGEST}"', "*"):
        assert client.get("/file", headers={"if-none-match": tags}).status_code == 304
    assert client.get("/file", headers={"if-none-match": '"x"'}).status_code == 200
    assert client.get("/file", headers={"range": "bytes=5-", "if-range": '"x"'}).status_code == 200


@pytest.mark.parametrize("field", ["sha-256=:x:", "sha-256=abc", "sha-256=::", "sha-256=:AAAA:", "sha-256=:" + "A" * 44])
def test_digests_that_cannot_be_read(field: str) -> None:
    with pytest.raises(BadDigest):
        expected_digest(field)


def test_a_body_that_is_not_what_its_digest_says_is_not_kept(service: Running, sample_file: Path) -> None:
    data, before = sample_file.read_bytes(), service.files()
    right = f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"
    wrong = f"sha-512=:AAAA:, sha-256=:{base64.b64encode(bytes(32)).decode()}:"

    def post(field: str) -> Any:
        return service.client.post("/v1/samples", content=data, headers={"content-digest": field})

    document = problem(post(wrong), 400, "bad-digest")
    assert document["got"] == hashlib.sha256(data).hexdigest()
    problem(post("sha-256=:x:"), 400, "bad-digest")
    assert service.files() == before
    assert post(right).status_code == 201
