"""Whatever is wrong with a request, the answer is a problem document that says what to do, and nothing is left behind."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from tests.service.running import Running, post_plan, problem, running, until


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/nothing", 404, "not-found"),
        ("GET", "/v1/plans/nothing", 404, "not-found"),
        ("GET", "/v1/plans/nothing/checkpoint", 404, "not-found"),
        ("GET", "/v1/models/nothing", 404, "not-found"),
        ("GET", "/v1/samples/nothing", 404, "not-found"),
        ("GET", "/v1/profiles/nothing", 404, "not-found"),
        ("GET", "/v1/jobs/nothing", 404, "not-found"),
        ("GET", "/v1/jobs/nothing/events", 404, "not-found"),
        ("DELETE", "/v1/jobs/nothing", 404, "not-found"),
        ("DELETE", "/v1/plans", 405, "method-not-allowed"),
        ("GET", "/v1/plans?limit=many", 422, "invalid-request"),
    ],
)
def test_what_is_not_there(service: Running, method: str, path: str, status: int, kind: str) -> None:
    problem(service.client.request(method, path), status, kind)


@pytest.mark.parametrize(
    "budget", [0, -1, "0", "-5 MiB", "12 parsecs", "", "MiB", "nan", "inf", "0%", "1e999", "1e30 GiB", True, None, [1]]
)
def test_a_budget_that_is_none(service: Running, budget: Any) -> None:
    before = service.files()
    answer = post_plan(service, {"budget": budget}, b"not looked at", b"not looked at")
    assert "64 MiB" in problem(answer, 422, "bad-budget")["detail"]
    assert service.files() == before


@pytest.mark.parametrize(
    ("request_part", "where"),
    [
        ({}, "body"),
        ({"budget": "1 MiB", "optimiser": {}}, "optimiser"),
        ({"budget": "1 MiB", "optimizer": {"name": "lion"}}, "optimizer.name"),
        ({"budget": "1 MiB", "optimizer": {"name": "adam", "momentum": 0.9}}, "optimizer"),
        ({"budget": "1 MiB", "optimizer": {"momentum": 1.5}}, "optimizer.momentum"),
        ({"budget": "1 MiB", "optimizer": "adam"}, "optimizer"),
        ({"budget": "1 MiB", "batch_norm": "half"}, "batch_norm"),
        ({"budget": "1 MiB", "batch_size": 0}, "batch_size"),
        ({"budget": "1 MiB", "trainable": []}, "trainable"),
        ({"budget": "1 MiB", "last": 0}, "last"),
        ({"budget": "1 MiB", "max_slowdown": 0.5}, "max_slowdown"),
        ({"budget": "1 MiB", "min_fidelity": 1.5}, "min_fidelity"),
        ({"budget": "1 MiB", "objective": "speed"}, "objective"),
        ({"budget": "1 MiB", "techniques": ["mask", "zip"]}, "techniques"),
        ({"budget": "1 MiB", "profile": "p", "loss": "mse"}, "body"),
    ],
)
def test_a_request_with_wrong_members_is_told_where(service: Running, request_part: dict[str, Any], where: str) -> None:
    document = problem(post_plan(service, request_part, b"", b""), 422, "invalid-request")
    assert where in {error["where"] for error in document["errors"]}
    assert not re.search(r"Value error|dictionary|instance of|Extra inputs", document["detail"]), "words of Python's types"


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"64 MiB"', "[" * 100_000])
def test_a_request_that_is_no_json_object(service: Running, text: str) -> None:
    problem(post_plan(service, text, b"", b""), 422, "invalid-request")


def test_bodies_of_the_wrong_kind(service: Running) -> None:
    client = service.client
    for kind, said in (("text/plain", "'text/plain'"), ("", "no Content-Type")):
        answer = client.post("/v1/plans", content=b"budget=1", headers={"content-type": kind})
        assert said in problem(answer, 415, "unsupported-media-type")["detail"]
    problem(client.post("/v1/plans", files={"model": b"x"}), 422, "invalid-request")
    problem(client.post("/v1/plans", files={"request": (None, '{"budget": 1}'), "image": b"x"}), 422, "invalid-request")
    problem(client.post("/v1/plans", files=[("request", (None, "{}")), ("request", (None, "{}"))]), 422, "invalid-request")
    headers = {"content-type": "multipart/form-data; boundary=edge"}
    cut = b'--edge\r\nContent-Disposition: form-data; name="request"\r\n\r\n{"budget": 1}'
    assert "cut short" in problem(client.post("/v1/plans", content=cut, headers=headers), 422, "invalid-request")["detail"]
    problem(client.post("/v1/plans", content=b"no parts", headers=headers), 422, "invalid-request")
    problem(client.post("/v1/plans", content=cut, headers={"content-type": "multipart/form-data"}), 422, "invalid-request")
    problem(client.post("/v1/models", files={"model": b"x"}), 422, "invalid-request")


def test_a_plan_needs_one_model_and_one_sample(service: Running) -> None:
    client = service.client
    assert "one model" in problem(client.post("/v1/plans", json={"budget": 1}), 422, "invalid-request")["detail"]
    problem(client.post("/v1/plans", json={"budget": 1, "model": "0" * 64, "sample": "0" * 64}), 404, "not-found")
    problem(client.post("/v1/plans", json={"budget": 1, "profile": "nothing"}), 404, "not-found")
    problem(client.post("/v1/profiles", json={"model": "0" * 64, "sample": "0" * 64}), 404, "not-found")


def test_models_that_are_none(service: Running, model_file: Path, tmp_path: Path) -> None:
    before = service.files()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pt2")
    whole = model_file.read_bytes()
    for data in (b"", whole[:-100], whole[: len(whole) // 2], pickle.dumps({"a": 1}), (tmp_path / "net.pt2").read_bytes()):
        assert "torch.export" in problem(service.client.post("/v1/models", content=data), 422, "bad-model")["detail"]
        assert "torch.export" in problem(post_plan(service, {"budget": "1 MiB"}, data, b""), 422, "bad-model")["detail"]
    assert service.files() == before
    assert service.client.get("/healthz").json() == {"status": "ok"}


def test_samples_that_are_none(service: Running, sample_file: Path) -> None:
    before = service.files()
    tensors = load_file(sample_file)
    tensors["inputs.0"][3, 1, 2, 0] = float("nan")
    document = problem(service.client.post("/v1/samples", content=save(tensors)), 422, "bad-sample")
    assert (document["tensor"], document["index"]) == ("inputs.0", [3, 1, 2, 0])
    problem(service.client.post("/v1/samples", content=sample_file.read_bytes()[:-1]), 422, "bad-sample")
    problem(service.client.post("/v1/samples", files={"file": pickle.dumps(1)}), 422, "bad-sample")
    assert service.files() == before


@pytest.mark.parametrize("path", ["/v1/samples", "/v1/models", "/v1/plans"])
def test_a_client_that_goes_away_leaves_nothing(service: Running, path: str) -> None:
    before = service.files()
    with service.connect() as client:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=edge\r\nContent-Length: 1000000\r\n\r\n"
        client.sendall(head.encode() + b'--edge\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + bytes(5000))
        until(lambda: service.files() != before)
    until(lambda: service.files() == before)


def test_a_file_larger_than_allowed(tmp_path: Path, sample_file: Path) -> None:
    with running(tmp_path / "data", max_upload_bytes=1000) as small:
        before = small.files()
        document = problem(small.client.post("/v1/samples", content=sample_file.read_bytes()), 413, "too-large")
        assert document["limit_bytes"] == 1000
        assert small.files() == before


def test_the_description_of_the_calls_is_whole(service: Running) -> None:
    description = service.client.get("/openapi.json").json()
    text = json.dumps(description)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(description["components"]["schemas"])
    assert {"PlanBody", "PlanAnswer", "ProblemAnswer", "OptimizerBody"} <= names | set(description["components"]["schemas"])
    for path, calls in description["paths"].items():
        for method, call in calls.items():
            assert call.get("description"), f"{method} {path} is not described"
