"""The whole way over HTTP: files and a budget in, a verified checkpoint out."""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import memfit
from tests.service.running import FINISHED, Running, follow, post_plan, problem
from tests.service.small_model import BATCH, SmallNet, export

STATES = ["queued", "profiling", "solving", "patching", "verifying", "ready"]
CONTRACT = {
    *("id", "state", "model", "sample", "profile", "job", "budget_bytes", "fidelity", "bound", "gap", "predicted_peak_bytes", "footprint"),
    *(
        "micro_batch",
        "parameters",
        "activations",
        "certificate",
        "least_budget_bytes",
        "binding",
        "suggestions",
        "timeline",
        "solve_seconds",
        "headroom_bytes",
        "objective",
        "score",
        "slowdown",
        "alternatives",
    ),
}


def finished(service: Running, id: str) -> dict[str, Any]:
    return service.until(f"/v1/plans/{id}", lambda plan: plan["state"] in FINISHED)


@pytest.fixture(scope="module")
def first(service: Running, model_file: Path, sample_file: Path) -> dict[str, Any]:
    """A plan that was asked for in one call, with all the states it was seen in."""
    answer = post_plan(service, {"budget": "60%", "optimizer": {"momentum": 0.9}}, model_file.read_bytes(), sample_file.read_bytes())
    assert answer.status_code == 202, answer.text
    plan = answer.json()
    assert answer.headers["location"] == f"/v1/plans/{plan['id']}"
    seen: list[str] = []

    def look(plan: dict[str, Any]) -> bool:
        if plan["state"] not in seen[-1:]:
            seen.append(plan["state"])
        return plan["state"] in FINISHED

    plan = service.until(f"/v1/plans/{plan['id']}", look)
    return plan | {"seen": seen}


def test_a_plan_comes_to_be_verified(first: dict[str, Any]) -> None:
    assert first["state"] == "ready", first["problem"]
    assert set(first) >= CONTRACT
    assert [each["name"] for each in first["alternatives"]] == ["lossless", "smaller_batch", "last_layers", "one_epsilon"]
    certificate = first["certificate"]
    assert certificate["measured_peak_bytes"] <= first["budget_bytes"]
    assert first["budget_bytes"] < certificate["plain"]["measured_peak_bytes"]
    assert set(certificate) >= {"measured_peak_bytes", "process_peak_bytes", "runtime_bytes", "fidelity", "step_seconds", "plain", "host"}
    assert first["least_budget_bytes"] is first["binding"] is first["suggestions"] is first["problem"] is None


def test_its_states_are_seen_in_their_order(first: dict[str, Any]) -> None:
    places = [STATES.index(state) for state in first["seen"]]
    assert places == sorted(places)
    assert {"profiling", "ready"} <= set(first["seen"])


def test_its_numbers_belong_together(first: dict[str, Any]) -> None:
    peak = first["footprint"]
    assert peak["static_bytes"] + peak["saved_bytes"] + peak["transient_bytes"] == first["predicted_peak_bytes"]
    totals = [moment["static_bytes"] + moment["saved_bytes"] + moment["transient_bytes"] for moment in first["timeline"]]
    assert max(totals) == first["predicted_peak_bytes"] <= first["budget_bytes"]
    assert math.isclose(first["bound"] - first["fidelity"], first["gap"], abs_tol=1e-9)
    assert 0 <= first["fidelity"] <= 1
    assert {parameter["name"] for parameter in first["parameters"]} == {name for name, _ in SmallNet().named_parameters()}
    for activation in first["activations"]:
        assert set(activation) >= {"name", "holders", "shape", "bytes", "technique", "settings", "held_bytes", "lost_energy"}
        assert activation["held_bytes"] <= activation["bytes"]


def test_its_checkpoint_trains_under_the_original_names(service: Running, first: dict[str, Any], sample_file: Path, tmp_path: Path) -> None:
    answer = service.client.get(f"/v1/plans/{first['id']}/checkpoint")
    (path := tmp_path / "net.pt2").write_bytes(answer.raise_for_status().content)
    model = memfit.load(path)
    sample = load_file(sample_file)
    step = memfit.TrainingStep(model, lr=0.05)
    losses = [step(sample["inputs.0"], sample["targets"]) for _ in range(20)]
    assert losses[-1] < losses[0]
    SmallNet().load_state_dict(model.state_dict())


def test_a_download_goes_on_where_it_broke_and_is_not_repeated(service: Running, first: dict[str, Any]) -> None:
    path = f"/v1/plans/{first['id']}/checkpoint"
    whole = service.client.get(path)
    etag = whole.headers["etag"]
    assert etag == f'"{hashlib.sha256(whole.content).hexdigest()}"'
    rest = service.client.get(path, headers={"range": "bytes=100-", "if-range": etag})
    assert (rest.status_code, rest.content) == (206, whole.content[100:])
    assert rest.headers["content-range"] == f"bytes 100-{len(whole.content) - 1}/{len(whole.content)}"
    changed = service.client.get(path, headers={"range": "bytes=100-", "if-range": '"another"'})
    assert (changed.status_code, changed.content) == (200, whole.content)
    for tags in (etag, f'"another", W/{etag}', "*"):
        same = service.client.get(path, headers={"if-none-match": tags})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    document = problem(service.client.get(path, headers={"range": f"bytes={len(whole.content)}-"}), 416, "range-not-satisfiable")
    assert document["bytes"] == len(whole.content)


def test_what_is_stored_is_not_stored_again(service: Running, first: dict[str, Any], model_file: Path, sample_file: Path) -> None:
    before = service.files()
    for kind, file in (("models", model_file), ("samples", sample_file)):
        raw = service.client.post(f"/v1/{kind}", content=file.read_bytes())
        part = service.client.post(f"/v1/{kind}", files={"file": file.read_bytes()})
        assert (raw.status_code, part.status_code) == (200, 200)
        assert raw.json()["id"] == part.json()["id"] == first[kind.removesuffix("s")]
        assert raw.headers["location"] == f"/v1/{kind}/{raw.json()['id']}"
        assert service.client.get(raw.headers["location"]).json() == raw.json()
    assert service.files() == before


def test_a_stored_profile_answers_at_once_and_events_tell_the_rest(service: Running, first: dict[str, Any]) -> None:
    answer = service.client.post("/v1/plans", json={"profile": first["profile"], "budget": first["budget_bytes"]})
    plan = answer.raise_for_status().json()
    assert answer.elapsed.total_seconds() < 1
    assert plan["fidelity"] is not None
    assert plan["activations"]
    assert plan["certificate"] is None
    assert plan["state"] not in FINISHED

    events = list(follow(service.client, plan["job"]))
    assert [name for name, _ in events] == ["progress"] * (len(events) - 1) + ["end"]
    assert (events[-1][1]["state"], events[-1][1]["plan"]) == ("succeeded", plan["id"])
    stages = list(dict.fromkeys(job["stage"] for _, job in events))
    assert stages in (["queued", "patching", "verifying"], ["patching", "verifying"])
    assert all(0 <= job["fraction"] <= 1 for _, job in events)
    assert [name for name, _ in follow(service.client, plan["job"])] == ["end"], "one that comes late gets the end"
    assert finished(service, plan["id"])["state"] == "ready"


def test_the_same_settings_in_other_words_are_the_same_profile(service: Running, first: dict[str, Any]) -> None:
    body = {"model": first["model"], "sample": first["sample"], "budget": first["budget_bytes"], "batch_size": BATCH}
    plan = service.client.post("/v1/plans", json=body).raise_for_status().json()
    assert plan["profile"] == first["profile"]
    assert plan["activations"]
    service.client.delete(f"/v1/jobs/{plan['job']}").raise_for_status()


def test_a_budget_no_plan_fits_is_answered_with_the_least_that_one_does(service: Running, first: dict[str, Any]) -> None:
    answer = service.client.post("/v1/plans", json={"profile": first["profile"], "budget": 1000})
    plan = answer.raise_for_status().json()
    assert plan["state"] == "infeasible"
    assert plan["job"] is None
    assert plan["certificate"] is None
    assert plan["activations"] is None
    assert plan["budget_bytes"] == 1000 < plan["least_budget_bytes"]
    assert plan["binding"]
    assert plan["suggestions"] is not None
    assert plan["problem"]["type"] == "/problems/infeasible-budget"
    assert "no checkpoint." in problem(service.client.get(f"/v1/plans/{plan['id']}/checkpoint"), 409, "checkpoint-not-ready")["detail"]
    enough = service.client.post("/v1/plans", json={"profile": first["profile"], "budget": plan["least_budget_bytes"]}).json()
    assert enough["state"] != "infeasible"
    service.client.delete(f"/v1/jobs/{enough['job']}")


def test_a_profile_shows_what_was_measured_and_is_measured_once(service: Running, first: dict[str, Any]) -> None:
    profile = service.client.get(f"/v1/profiles/{first['profile']}").json()
    assert profile["state"] == "ready"
    assert profile["measured"]["steps"][0]["batch_size"] == profile["settings"]["batch_size"] == BATCH
    assert profile["measured"]["steps"][0]["activations"]
    assert profile["measured"]["plain"] and profile["measured"]["runtime_bytes"] > 0
    moments = {(each["phase"], each["operation"]) for each in profile["timeline"]}
    assert {("forward", "loss"), ("backward", "loss"), ("update", "optimizer")} <= moments
    assert all(sum(each["saved_by_technique"].values()) == each["saved_bytes"] for each in profile["timeline"])
    assert any(each["saved_by_technique"].get("keep") for each in profile["timeline"])
    again = service.client.post("/v1/profiles", json={"model": first["model"], "sample": first["sample"]})
    assert (again.status_code, again.json()["id"], again.json()["job"]) == (202, first["profile"], profile["job"])


def test_those_who_ask_for_one_profile_at_a_time_share_it(service: Running, first: dict[str, Any]) -> None:
    body = {"model": first["model"], "sample": first["sample"], "batch_size": 2}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: service.client.post("/v1/profiles", json=body).raise_for_status().json(), range(4)))
    assert len({answer["id"] for answer in answers}) == len({answer["job"] for answer in answers}) == 1
    job = service.client.delete(f"/v1/jobs/{answers[0]['job']}").json()
    assert (job["kind"], job["profile"], job["plan"]) == ("profile", answers[0]["id"], None)


def test_what_does_not_fit_is_refused_and_leaves_nothing(service: Running, first: dict[str, Any], model_file: Path, tmp_path: Path) -> None:
    other = export(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10)), torch.ones(4, 3, 4, 4), to=tmp_path / "other.pt2")
    save_file({"inputs.0": torch.ones(4, 3, 16, 16), "targets": torch.zeros(4, dtype=torch.int64)}, tmp_path / "small.safetensors")
    sample = (tmp_path / "small.safetensors").read_bytes()
    before, plans = service.files(), service.client.get("/v1/plans").json()
    document = problem(post_plan(service, {"budget": "1 MiB"}, other.read_bytes(), sample), 422, "bad-sample")
    assert document["expected"] == [None, 3, 4, 4]
    assert document["got"] == [4, 3, 16, 16]
    document = problem(post_plan(service, {"budget": "1 MiB", "loss": "hinge"}, model_file.read_bytes(), sample), 422, "unknown-loss")
    assert document["outputs"]
    problem(post_plan(service, {"budget": "1 MiB", "batch_size": 5}, model_file.read_bytes(), sample), 422, "bad-sample")
    problem(post_plan(service, {"budget": "1 MiB", "trainable": ["nothing"]}, model_file.read_bytes(), sample), 422, "nothing-trainable")
    problem(
        service.client.post("/v1/plans", json={"profile": first["profile"], "budget": 1, "trainable": ["no.*"]}), 422, "nothing-trainable"
    )
    problem(
        service.client.post("/v1/profiles", json={"model": first["model"], "sample": first["sample"], "loss": "hinge"}), 422, "unknown-loss"
    )
    assert service.files() == before
    assert service.client.get("/v1/plans").json() == plans


def test_a_model_that_cannot_be_planned_is_refused_on_upload(service: Running, tmp_path: Path) -> None:
    before = service.files()
    nothing_to_train = export(torch.nn.ReLU(), torch.ones(4, 3), to=tmp_path / "relu.pt2")
    problem(service.client.post("/v1/models", content=nothing_to_train.read_bytes()), 422, "bad-model")
    assert service.files() == before


def test_plans_are_listed_newest_first(service: Running, first: dict[str, Any]) -> None:
    plans = service.client.get("/v1/plans").json()["plans"]
    times = [plan["created_at"] for plan in plans]
    assert times == sorted(times, reverse=True)
    assert first["id"] in {plan["id"] for plan in plans}
    assert len(service.client.get("/v1/plans?limit=1").json()["plans"]) == 1
