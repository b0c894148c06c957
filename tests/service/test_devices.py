"""Devices give a plan its budget: their memory, less what is taken already."""

from pathlib import Path

import pytest

from service.presets import PRESETS
from tests.service.running import FINISHED, Running, problem, running
from tests.service.test_keys import client_of

OWN = {"name": "barn", "memory_bytes": 300 * 2**20, "system_bytes": 60 * 2**20, "runtime_bytes": 230 * 2**20, "source": "free -b"}


def test_a_dozen_boards_with_the_source_of_every_figure(service: Running) -> None:
    devices = service.client.get("/v1/devices").raise_for_status().json()["devices"]
    assert len(devices) == len(PRESETS) >= 12
    assert len({device["id"] for device in devices}) == len(devices)
    for device in devices:
        assert device["budget_bytes"] == device["memory_bytes"] - device["system_bytes"] - device["runtime_bytes"] > 0
        assert all(device[f"{figure}_source"] for figure in ("memory", "system", "runtime"))
        assert service.client.get(f"/v1/devices/{device['id']}").json() == device


def test_devices_of_ones_own_come_and_go(service: Running) -> None:
    answer = service.client.post("/v1/devices", json=OWN)
    assert (answer.status_code, answer.json()["budget_bytes"], answer.json()["own"]) == (201, 10 * 2**20, True)
    place = answer.headers["location"]
    assert service.client.get(place).json() == answer.json()
    assert answer.json() in service.client.get("/v1/devices").json()["devices"]
    assert service.client.delete(place).status_code == 204
    problem(service.client.get(place), 404, "not-found")
    problem(service.client.delete(f"/v1/devices/{PRESETS[0].id}"), 422, "invalid-request")
    problem(service.client.post("/v1/devices", json=OWN | {"memory_bytes": 290 * 2**20}), 422, "invalid-request")
    problem(service.client.post("/v1/devices", json=OWN | {"colour": "red"}), 422, "invalid-request")


def test_a_plan_is_for_a_budget_or_a_device(service: Running) -> None:
    both = {"budget": "1 MiB", "device": PRESETS[0].id, "model": "0" * 64, "sample": "0" * 64}
    problem(service.client.post("/v1/plans", json=both), 422, "invalid-request")
    problem(service.client.post("/v1/plans", json={"device": "abacus"}), 404, "not-found")
    problem(service.client.post("/v1/plans", json={"device": 5}), 422, "invalid-request")


@pytest.mark.slow
def test_a_plan_for_a_device_has_its_budget_and_the_device_is_its_owners(tmp_path: Path, model_file: Path, sample_file: Path) -> None:
    with running(tmp_path / "data") as service, client_of(service, "ann") as ann, client_of(service, "bob") as bob:
        device = ann.post("/v1/devices", json=OWN).raise_for_status().json()
        problem(bob.get(f"/v1/devices/{device['id']}"), 404, "not-found")
        problem(bob.post("/v1/plans", json={"device": device["id"]}), 404, "not-found")
        parts = {"model": model_file.read_bytes(), "sample": sample_file.read_bytes(), "request": (None, f'{{"device": "{device["id"]}"}}')}
        plan = ann.post("/v1/plans", files=parts).raise_for_status().json()  # type: ignore[arg-type]
        assert plan["budget_bytes"] == device["budget_bytes"]
        assert plan["state"] not in FINISHED
        ann.delete(f"/v1/jobs/{plan['job']}").raise_for_status()
