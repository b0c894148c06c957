"""Stages run in processes of their own, which end when nobody wants them and never show their insides."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from planner.request import ProfileSettings
from service.stage_process import Cancellation, Cancelled, StageProblem, Stages
from tests.service.running import ROOT, stage_children, until


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    (tmp_path / "work").mkdir()
    return Stages(tmp_path / "work", tmp_path / "log", Cancellation())


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A model that takes for ever to open: a pipe that nobody writes to."""
    os.mkfifo(pipe := tmp_path / "endless.pt2")
    return pipe


def test_a_model_is_inspected(stages: Stages, model_file: Path) -> None:
    summary = stages.inspect(model_file)
    assert [(wanted.shape, wanted.dtype) for wanted in summary.inputs] == [((None, 3, 16, 16), "float32")]
    assert {parameter.name for parameter in summary.parameters} >= {"features.0.weight", "classifier.bias"}
    assert {parameter.name: parameter.bytes for parameter in summary.parameters}["classifier.weight"] == 4 * 256 * 10
    assert summary.outputs
    assert summary.operations
    assert summary.buffers_bytes > 0


def test_what_the_planner_refuses_comes_with_its_kind_and_facts(stages: Stages, model_file: Path, tmp_path: Path) -> None:
    save_file({"inputs.0": torch.ones(2, 3, 16, 16)}, wrong := tmp_path / "no-targets.safetensors")
    with pytest.raises(StageProblem) as refused:
        stages.profile(model_file, wrong, ProfileSettings(), lambda fraction, message: None)
    assert refused.value.document.kind == "bad-sample"
    assert refused.value.document.status == 422


def test_a_mistake_is_internal_and_its_traceback_stays_in_the_log(stages: Stages, tmp_path: Path) -> None:
    with pytest.raises(StageProblem) as refused:
        stages.inspect(tmp_path / "missing.pt2")
    document = refused.value.document
    assert document.kind in ("internal", "bad-model")
    assert "Traceback" not in document.detail
    assert "Traceback" in stages.log.read_text()


def test_cancelling_ends_the_process_from_any_thread(stages: Stages, endless: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stages.inspect, endless)
        until(lambda: len(stage_children(stages.folder)) == 1)
        stages.cancellation.cancel()
        with pytest.raises(Cancelled):
            waiting.result(10)
    assert stage_children(stages.folder) == []


def test_what_was_cancelled_does_not_begin(stages: Stages, endless: Path) -> None:
    stages.cancellation.cancel()
    with pytest.raises(Cancelled):
        stages.inspect(endless)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGKILL, "out-of-memory"), (signal.SIGSEGV, "internal")])
def test_a_process_that_dies_is_reported_with_its_signal(stages: Stages, endless: Path, number: signal.Signals, kind: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stages.inspect, endless)
        until(lambda: len(stage_children(stages.folder)) == 1)
        os.kill(stage_children(stages.folder)[0], number)
        with pytest.raises(StageProblem) as refused:
            waiting.result(10)
    assert refused.value.document.kind == kind
    assert refused.value.document.facts["stage"] == "inspect"
    assert ("batch_size" if kind == "out-of-memory" else "SIGSEGV") in refused.value.document.detail


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_stage_ends_with_its_server_however_that_ends(stages: Stages, endless: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from service.stage_process import *\n"
        "Stages(Path(sys.argv[1]), Path(sys.argv[2]), Cancellation()).inspect(Path(sys.argv[3]))"
    )
    server = subprocess.Popen([sys.executable, "-c", code, stages.folder, stages.log, endless], cwd=ROOT)
    until(lambda: len(stage_children(stages.folder)) == 1 and "SigCgt" in status_of(stage_children(stages.folder)[0]))
    server.kill()
    server.wait()
    until(lambda: stage_children(stages.folder) == [])


def status_of(pid: int) -> str:
    """The signals a process handles, once it handles any: it does not before it has asked to end with its parent."""
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    handled = int(lines["SigCgt"].strip(), 16)
    return "SigCgt" if handled >> (signal.SIGTERM - 1) & 1 else ""


def test_what_libraries_print_goes_to_the_log_and_not_into_the_messages() -> None:
    code = (
        "import os; from service.child import take_standard_output\n"
        "channel = take_standard_output(); print('noise', flush=True); os.write(1, b'more noise\\n')\n"
        "channel.write('message\\n'); channel.flush()"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, cwd=ROOT, check=True)
    assert done.stdout == "message\n"
    assert done.stderr == "noise\nmore noise\n"


def test_a_stage_sees_no_variables_but_those_it_needs(stages: Stages, endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMFIT_SECRET", "secret")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stages.inspect, endless)
        until(lambda: len(stage_children(stages.folder)) == 1)
        variables = Path(f"/proc/{stage_children(stages.folder)[0]}/environ").read_text()
        stages.cancellation.cancel()
        with pytest.raises(Cancelled):
            waiting.result(10)
    assert "MEMFIT_SECRET" not in variables
    assert f"HOME={stages.folder}" in variables.split("\0")
