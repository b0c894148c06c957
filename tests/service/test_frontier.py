"""The frontier over HTTP and from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from service.commands import app
from tests.service.running import FINISHED, Running, post_plan, problem


@pytest.fixture(scope="module")
def profile(service: Running, model_file: Path, sample_file: Path) -> str:
    plan = post_plan(service, {"budget": "100%"}, model_file.read_bytes(), sample_file.read_bytes()).json()
    return str(service.until(f"/v1/plans/{plan['id']}", lambda plan: plan["state"] in FINISHED)["profile"])


def test_a_stored_profile_has_a_frontier(service: Running, profile: str) -> None:
    answer = service.client.get(f"/v1/profiles/{profile}/frontier", params={"points": 5, "momentum": 0.9})
    assert answer.status_code == 200, answer.text
    points: list[dict[str, Any]] = answer.json()["points"]
    assert len(points) == 5
    assert [point["budget_bytes"] for point in points] == sorted(point["budget_bytes"] for point in points)
    assert [point["fidelity"] for point in points] == sorted(point["fidelity"] for point in points)
    assert points[-1]["fidelity"] == 1.0
    assert all(point["predicted_peak_bytes"] <= point["budget_bytes"] for point in points)
    assert any(point["changes"] for point in points)


def test_a_frontier_of_part_of_the_model_trains_that(service: Running, profile: str) -> None:
    answer = service.client.get(f"/v1/profiles/{profile}/frontier", params={"points": 2, "last": 1})
    assert answer.json()["points"][-1]["trained"] == 2


def test_wrong_questions_are_told(service: Running, profile: str) -> None:
    problem(service.client.get("/v1/profiles/none/frontier"), 404, "not-found")
    nothing = service.client.get(f"/v1/profiles/{profile}/frontier", params={"trainable": "none*"})
    problem(nothing, 422, "nothing-trainable")


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"points": 1}, "points"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum belongs to sgd"),
        ({"momentum": 1}, "momentum"),
        ({"last": 0}, "last"),
        ({"budget": "1 MiB"}, "budget"),
    ],
)
def test_a_frontier_is_asked_for_by_the_rules_of_a_plan(service: Running, profile: str, asked: dict[str, Any], what: str) -> None:
    answer = service.client.get(f"/v1/profiles/{profile}/frontier", params=asked)
    assert what in problem(answer, 422, "invalid-request")["detail"]


@pytest.mark.slow
def test_it_is_shown_and_drawn(model_file: Path, sample_file: Path, tmp_path: Path) -> None:
    plot = tmp_path / "frontier.png"
    done = CliRunner().invoke(app, ["frontier", str(model_file), str(sample_file), "--points", "4", "--plot", str(plot), "--json"])
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)["points"]) == 4
    with Image.open(plot) as image:
        assert image.width > 300 and len(image.convert("RGB").getcolors(1 << 20) or ()) > 10
    wrong = CliRunner().invoke(app, ["frontier", str(model_file), str(sample_file), "--points", "2", "--plot", str(tmp_path / "a.txt")])
    assert wrong.exit_code == 2
    assert ".png" in wrong.stderr


def test_devices_are_listed_with_their_budgets() -> None:
    done = CliRunner().invoke(app, ["devices"])
    assert done.exit_code == 0
    assert "raspberry-pi-zero-2-w" in done.stdout
    every = json.loads(CliRunner().invoke(app, ["devices", "--json"]).stdout)["devices"]
    assert all(device["budget_bytes"] > 0 for device in every)
