"""The service seen from outside: health, metrics, logs, and the description of its calls."""

import json
import logging
import re
from pathlib import Path

import pytest

from service.logs import JsonLines
from service.openapi import description
from tests.service.running import ROOT, Running, problem, running
from tests.service.test_keys import client_of


def test_it_lives_and_can_work(service: Running) -> None:
    assert service.client.get("/healthz").json() == {"status": "ok"}
    assert service.client.get("/readyz").json() == {"status": "ok"}


def test_it_says_when_it_cannot_work(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setattr("service.health.LEAST_FREE_BYTES", 2**60)
        answer = service.client.get("/readyz")
        assert "disk" in problem(answer, 503, "not-ready")["detail"]
        assert int(answer.headers["retry-after"]) > 0
        assert service.client.get("/healthz").status_code == 200
    with monkeypatch.context() as context:
        context.setattr(service.context.database, "transaction", lambda: 1 / 0)
        assert "database" in problem(service.client.get("/readyz"), 503, "not-ready")["detail"]
    assert service.client.get("/readyz").status_code == 200


def metric(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, flags=re.MULTILINE)
    assert found is not None, f"no {name} in\n{text}"
    return float(found[1])


@pytest.mark.slow
def test_a_plan_is_counted_and_its_job_has_a_log(model_file: Path, sample_file: Path, tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        assert metric(service.client.get("/metrics").text, 'memfit_jobs{state="succeeded"}') == 0
        files = {"model": model_file.read_bytes(), "sample": sample_file.read_bytes(), "request": (None, '{"budget": "80%"}')}
        plan = service.client.post("/v1/plans", files=files).raise_for_status().json()  # type: ignore[arg-type]
        plan = service.until(f"/v1/plans/{plan['id']}", lambda plan: plan["state"] in ("ready", "failed"))
        assert plan["state"] == "ready", plan["problem"]
        text = service.client.get("/metrics").text
        log = service.client.get(f"/v1/jobs/{plan['job']}/logs")
        with client_of(service, "ann") as ann:
            problem(ann.get(f"/v1/jobs/{plan['job']}/logs"), 404, "not-found")
    assert metric(text, 'memfit_jobs{state="succeeded"}') == 1
    assert metric(text, "memfit_queue_age_seconds") == 0
    assert metric(text, "memfit_stored_bytes") > len(sample_file.read_bytes())
    assert metric(text, "memfit_prediction_error_count") == 1
    for stage in ("profile", "prove"):
        assert metric(text, f'memfit_stage_seconds_count{{stage="{stage}"}}') == 1
        assert metric(text, f'memfit_stage_peak_bytes_sum{{stage="{stage}"}}') > 100 * 2**20, "torch alone takes more"
    assert (log.status_code, log.headers["content-type"]) == (200, "text/plain; charset=utf-8")


def test_requests_are_logged_with_their_ids(service: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "service.requests"):
        caplog.handler.setFormatter(JsonLines())
        answer = service.client.get("/v1/plans/nothing", headers={"x-request-id": "mine"})
        other = service.client.get("/v1/plans")
    assert answer.headers["x-request-id"] == "mine"
    assert len(other.headers["x-request-id"]) == 36
    line = json.loads(next(line for line in caplog.text.splitlines() if "nothing" in line))
    assert (line["method"], line["path"], line["status"], line["request"]) == ("GET", "/v1/plans/nothing", 404, "mine")


def test_every_type_of_problem_has_a_page(service: Running) -> None:
    for kind in ("bad-model", "out-of-memory", "over-limit", "too-many-requests", "internal"):
        answer = service.client.get(f"/problems/{kind}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert kind in answer.text
    document = problem(service.client.get("/problems/nothing"), 404, "not-found")
    assert service.client.get(document["type"]).status_code == 200


def test_the_committed_description_is_that_of_the_code() -> None:
    committed = (ROOT / "docs" / "openapi.json").read_text()
    assert committed == description(), "the calls have changed: review, then run 'python -m service.openapi docs/openapi.json'"


def test_every_call_is_described_with_examples() -> None:
    document = json.loads(description())
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            for parameter in call.get("parameters", []):
                known = {"default", "examples"} & {*parameter["schema"], *parameter}
                assert known, f"{method} {path} has no example of {parameter['name']}"
            for kind, body in call.get("requestBody", {}).get("content", {}).items():
                schema = document["components"]["schemas"].get(body["schema"].get("$ref", "").rpartition("/")[2], {})
                examples = {"example", "examples"} & {*body} or "examples" in json.dumps(schema) or "binary" in json.dumps(body)
                assert examples, f"{method} {path} has no example of {kind}"


def test_operations_have_names_of_their_own() -> None:
    paths = json.loads(description())["paths"]
    names = [call["operationId"] for calls in paths.values() for call in calls.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+", name) for name in names), names
