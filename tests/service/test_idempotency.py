"""A request that is sent again with its Idempotency-Key is done once, and answered the same."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from models import ReplyRecord
from service import idempotency
from service.outages import Away
from tests.service.running import Running, problem

TUS = {"tus-resumable": "1.0.0", "upload-length": "5"}


def test_the_second_time_the_first_answer_comes_again(service: Running) -> None:
    key = {"idempotency-key": "first"}
    first = service.client.post("/v1/uploads", headers=TUS | key)
    again = service.client.post("/v1/uploads", headers=TUS | key)
    other = service.client.post("/v1/uploads", headers=TUS | {"idempotency-key": "other"})
    assert (first.status_code, again.status_code, other.status_code) == (201, 201, 201)
    assert again.headers["location"] == first.headers["location"] != other.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers


def test_an_answer_with_a_body_comes_again_whatever_the_boundary(service: Running, sample_file: Path) -> None:
    def post() -> tuple[int, str, bytes]:
        answer = service.client.post("/v1/samples", files={"file": sample_file.read_bytes()}, headers={"idempotency-key": "sample"})
        return answer.status_code, answer.headers["location"], answer.content

    assert post() == post()
    assert post()[0] == 201, "by itself it would be 200 the second time"


def test_a_refusal_comes_again_too(service: Running) -> None:
    for _ in range(2):
        answer = service.client.post("/v1/plans", json={"budget": "12 parsecs"}, headers={"idempotency-key": "refused"})
        problem(answer, 422, "bad-budget")


def test_who_has_the_answer_may_send_the_request_again(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = idempotency._end

    def noted_slowly(*of: Any) -> None:
        time.sleep(0.2)
        noted(*of)

    monkeypatch.setattr(idempotency, "_end", noted_slowly)
    for _ in range(2):
        answer = service.client.post("/v1/plans", json={"budget": "12 parsecs"}, headers={"idempotency-key": "slowly noted"})
        problem(answer, 422, "bad-budget")


def test_another_request_with_the_same_key_is_refused(service: Running) -> None:
    key = {"idempotency-key": "reused"}
    service.client.post("/v1/plans", json={"budget": "12 parsecs"}, headers=key)
    problem(service.client.post("/v1/plans", json={"budget": "13 parsecs"}, headers=key), 422, "idempotency-key-reused")
    problem(service.client.post("/v1/models", json={"budget": "12 parsecs"}, headers=key), 422, "idempotency-key-reused")
    problem(service.client.post("/v1/uploads", headers=TUS | {"idempotency-key": "x" * 300}), 422, "invalid-request")


def test_what_was_made_is_found_though_the_answer_was_lost(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    device = {"name": "one", "memory_bytes": 2**30, "system_bytes": 2**28}
    bodies: list[dict[str, Any]] = [{"url": "/v1/uploads", "headers": TUS}, {"url": "/v1/devices", "headers": {}, "json": device}]
    for body in bodies:
        body["headers"] = body["headers"] | {"idempotency-key": f"lost {body['url']}"}
        with monkeypatch.context() as context:
            context.setattr(idempotency, "_end", lambda *of: None)  # as if the server had died here
            first = service.client.post(**body).headers["location"]
        problem(service.client.post(**body), 409, "request-under-way")
        with service.context.database.transaction() as session:
            idempotency.let_be_sent_again(session)  # as the next server does
        again = service.client.post(**body)
        assert again.headers["location"] == first
        assert "idempotency-replayed" not in again.headers
        assert service.client.post(**body).headers["idempotency-replayed"] == "true"
        with service.context.database.transaction() as session:
            session.execute(delete(ReplyRecord))  # as the collector does, a day later
        assert service.client.post(**body).headers["location"] != first, "then it is another request"


def test_what_failed_for_now_is_done_when_it_is_sent_again(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*of: Any) -> None:
        raise Away("database", "it is away")

    key = {"idempotency-key": "failed"}
    with monkeypatch.context() as context:
        context.setattr("service.resumable.hold", away)
        problem(service.client.post("/v1/uploads", headers=TUS | key), 503, "away")
    assert service.client.post("/v1/uploads", headers=TUS | key).status_code == 201


def test_many_at_once_make_one(service: Running) -> None:
    def post(_: int) -> tuple[int, str | None]:
        answer = service.client.post("/v1/uploads", headers=TUS | {"idempotency-key": "many"})
        return answer.status_code, answer.headers.get("location")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(24)))
    assert {status for status, _ in answers} <= {201, 409}
    assert len({location for status, location in answers if status == 201}) == 1
