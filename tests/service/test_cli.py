"""The command line, as people and scripts call it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import memfit
from service.commands import app
from service.tables import amount


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is called."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.slow
def test_a_plan_is_proved_shown_and_written(model_file: Path, sample_file: Path, folder: Path) -> None:
    done = call("plan", model_file, sample_file, "--budget", "60%", "--momentum", "0.9")
    assert done.exit_code == 0, done.stderr
    for words in ("technique", "settings", "held", "static", "saved", "transient", "budget", "fidelity", "plain", "planned", "MiB", "KiB"):
        assert words in done.stdout, words
    assert "Traceback" not in done.stderr
    assert [path.name for path in folder.iterdir()] == ["small.memfit.pt2"]
    step = memfit.TrainingStep(memfit.load(folder / "small.memfit.pt2"), lr=0.01)
    sample = load_file(sample_file)
    assert step(sample["inputs.0"], sample["targets"]) > 0


@pytest.mark.slow
def test_a_budget_no_plan_fits_ends_with_3_and_the_least_that_one_does(model_file: Path, sample_file: Path, folder: Path) -> None:
    done = call("plan", model_file, sample_file, "--budget", "1KiB", "--json")
    assert done.exit_code == 3, done.stderr
    plan: dict[str, Any] = json.loads(done.stdout)
    assert (plan["state"], plan["budget_bytes"]) == ("infeasible", 1024)
    assert plan["least_budget_bytes"] > 1024
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--budget", "12 parsecs"), "unknown unit"),
        (("--budget", "0"), "greater than 0"),
        (("--budget", "1MiB", "--optimizer", "lion"), "optimizer.name"),
        (("--budget", "1MiB", "--loss", "hinge"), "'hinge' is not known"),
    ],
)
def test_what_is_wrong_ends_with_2_and_in_words(
    words: tuple[str, ...], why: str, model_file: Path, sample_file: Path, folder: Path
) -> None:
    done = call("plan", model_file, sample_file, *words)
    assert (done.exit_code, done.stdout) == (2, ""), done.stderr
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert list(folder.iterdir()) == []


def test_wrong_files_end_with_2(model_file: Path, sample_file: Path, folder: Path) -> None:
    torch.save({"weight": torch.ones(2)}, folder / "weights.pt")
    done = call("inspect", folder / "weights.pt", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["type"] == "/problems/bad-model"
    save_file({"inputs.0": torch.full((2, 3, 16, 16), torch.nan)}, folder / "nan")
    done = call("plan", model_file, folder / "nan", "--budget", "1MiB")
    assert done.exit_code == 2
    assert "NaN" in done.stderr
    assert call("plan", "missing.pt2", sample_file, "--budget", "1MiB").exit_code == 2


def test_a_model_is_inspected(model_file: Path, folder: Path) -> None:
    done = call("inspect", model_file)
    assert done.exit_code == 0, done.stderr
    assert "any×3×16×16" in done.stdout
    assert "features.0.weight" in done.stdout


def test_migrate_makes_the_database(folder: Path) -> None:
    for _ in range(2):
        assert call("migrate", "--data", folder / "data").exit_code == 0
    assert (folder / "data" / "memfit.db").exists()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (64 * 2**20, "64.0 MiB"),
        (1234567, "1.18 MiB"),
        (500 * 2**20, "500 MiB"),
        (3 * 2**30, "3.00 GiB"),
    ],
)
def test_bytes_are_shown_with_three_digits(size: int, text: str) -> None:
    assert amount(size) == text
