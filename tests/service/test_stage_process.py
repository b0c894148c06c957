"""Stages run in processes of their own, which end when nobody wants them and never show their insides."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from planner.request import ProfileSettings
from service.limits import limits_for
from service.protocol import TASK, InspectSpec, Task
from service.sandbox import Confinement, NoSandbox, Sandbox, find_sandbox, wrapped
from service.stage_process import Cancellation, Cancelled, StageProblem, Stages
from tests.service.running import ROOT, stage_children, until

LIMITS = limits_for(None, 600, 2**30)


def in_sandbox(tmp_path: Path, sandbox: Sandbox, **limits: Any) -> Stages:
    (tmp_path / "work").mkdir()
    return Stages(tmp_path / "work", tmp_path / "log", Cancellation(), Confinement(replace(LIMITS, **limits), sandbox))


@pytest.fixture(params=["none", "namespaces", "bubblewrap"])
def stages(tmp_path: Path, request: pytest.FixtureRequest) -> Stages:
    return in_sandbox(tmp_path, available(request.param))


def available(sandbox: Sandbox) -> Sandbox:
    """The sandbox, or a skip where the system has it not."""
    found = find_sandbox("auto")
    if sandbox == "bubblewrap" and found != "bubblewrap":
        pytest.skip("bubblewrap does not work here")
    if sandbox == "namespaces" and found == "none":
        pytest.skip("processes may not leave the network here")
    return sandbox


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A model that takes for ever to open: a pipe that nobody writes to."""
    os.mkfifo(pipe := tmp_path / "endless.pt2")
    return pipe


def test_a_model_is_inspected(stages: Stages, model_file: Path) -> None:
    summary = stages.inspect(model_file, stages.folder / "program.pt2")
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
        stages.inspect(tmp_path / "missing.pt2", stages.folder / "program.pt2")
    document = refused.value.document
    assert document.kind in ("internal", "bad-model")
    assert "Traceback" not in document.detail
    assert "Traceback" in stages.log.read_text()


def test_cancelling_ends_the_process_from_any_thread(stages: Stages, endless: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stages.inspect, endless, stages.folder / "program.pt2")
        until(lambda: len(stage_children(stages.folder)) == 1)
        stages.cancellation.cancel()
        with pytest.raises(Cancelled):
            waiting.result(10)
    assert stage_children(stages.folder) == []


def test_what_was_cancelled_does_not_begin(stages: Stages, endless: Path) -> None:
    stages.cancellation.cancel()
    with pytest.raises(Cancelled):
        stages.inspect(endless, stages.folder / "program.pt2")


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGKILL, "out-of-memory"), (signal.SIGSEGV, "internal")])
def test_a_process_that_dies_is_reported_with_its_signal(stages: Stages, endless: Path, number: signal.Signals, kind: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stages.inspect, endless, stages.folder / "program.pt2")
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
        "from service.limits import *; from service.sandbox import *\n"
        "confinement = Confinement(limits_for(None, 600, 2**30), sys.argv[4])\n"
        "stages = Stages(Path(sys.argv[1]), Path(sys.argv[2]), Cancellation(), confinement)\n"
        "stages.inspect(Path(sys.argv[3]), Path(sys.argv[1], 'program.pt2'))"
    )
    server = subprocess.Popen([sys.executable, "-c", code, stages.folder, stages.log, endless, stages.confinement.sandbox], cwd=ROOT)
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
        waiting = pool.submit(stages.inspect, endless, stages.folder / "program.pt2")
        until(lambda: len(stage_children(stages.folder)) == 1)
        variables = Path(f"/proc/{stage_children(stages.folder)[0]}/environ").read_text()
        stages.cancellation.cancel()
        with pytest.raises(Cancelled):
            waiting.result(10)
    assert "MEMFIT_SECRET" not in variables
    assert f"HOME={stages.folder}" in variables.split("\0")


def run_in(stages: Stages, code: str, file: Path) -> str:
    """What a process prints that is confined as a stage is. `file`: one it may read."""
    confinement = stages.confinement
    task = TASK.dump_json(Task(InspectSpec(file, file), confinement.limits, confinement.sandbox == "namespaces"))
    (stages.folder / "task.json").write_bytes(task)
    confined = (
        "import sys; from pathlib import Path\n"
        "from service.protocol import *; from service.limits import *; from service.sandbox import *\n"
        "task = TASK.validate_json(Path(sys.argv[1], 'task.json').read_bytes()); keep_to(task.limits)\n"
        "if task.leave_network: leave_network()\n"
    )
    command = wrapped(confinement.sandbox, [sys.executable, "-c", confined + code, str(stages.folder)], [file], stages.folder)
    done = subprocess.run(command, text=True, capture_output=True, cwd=stages.folder, env={"PYTHONPATH": str(ROOT)})
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_a_stage_has_no_network(stages: Stages, model_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2); print('connected')"
        answer = run_in(stages, code, model_file)
    assert (answer == "connected") == (stages.confinement.sandbox == "none"), answer


@pytest.mark.parametrize("stages", ["bubblewrap"], indirect=True)
def test_in_bubblewrap_a_stage_sees_no_files_but_its_own(stages: Stages, model_file: Path, tmp_path: Path) -> None:
    (secret := tmp_path / "secret").write_text("secret")
    assert "FileNotFoundError" in run_in(stages, f"open({str(secret)!r})", model_file)
    assert "Read-only" in run_in(stages, f"open({str(model_file)!r}, 'a')", model_file)
    assert run_in(stages, "print(len([p for p in Path('/proc').iterdir() if p.name.isdigit()]))", model_file) == "2"
    assert run_in(stages, "Path('mine').write_text('x'); print('written')", model_file) == "written"


def test_a_stage_that_needs_too_much_memory_is_told_what_to_change(tmp_path: Path, model_file: Path, sample_file: Path) -> None:
    stages = in_sandbox(tmp_path, find_sandbox("auto"), memory_bytes=230 * 2**20)  # torch itself takes 215 MiB of that
    with pytest.raises(StageProblem) as refused:
        stages.profile(model_file, sample_file, ProfileSettings(batch_size=8), lambda fraction, message: None)
    assert refused.value.document.kind == "out-of-memory", refused.value.document
    assert "batch_size" in refused.value.document.detail
    assert "MEMFIT_STAGE_MEMORY_BYTES" in refused.value.document.detail


def test_a_stage_that_takes_too_long_is_ended(tmp_path: Path, endless: Path) -> None:
    stages = in_sandbox(tmp_path, find_sandbox("auto"), wall_seconds=1.5)
    with pytest.raises(StageProblem) as refused:
        stages.inspect(endless, stages.folder / "program.pt2")
    assert (refused.value.document.kind, refused.value.document.facts["limit"]) == ("over-limit", "wall_seconds")
    assert stage_children(stages.folder) == []


def test_a_stage_that_computes_too_long_is_ended(tmp_path: Path, model_file: Path) -> None:
    stages = in_sandbox(tmp_path, find_sandbox("auto"), cpu_seconds=1)  # to import torch takes longer
    with pytest.raises(StageProblem) as refused:
        stages.inspect(model_file, stages.folder / "program.pt2")
    assert (refused.value.document.kind, refused.value.document.facts["limit"]) == ("over-limit", "cpu_seconds")


def test_a_stage_that_writes_too_much_is_ended(tmp_path: Path, model_file: Path) -> None:
    stages = in_sandbox(tmp_path, find_sandbox("auto"), file_bytes=10_000)
    with pytest.raises(StageProblem) as refused:
        stages.inspect(model_file, stages.folder / "program.pt2")
    assert (refused.value.document.kind, refused.value.document.facts["limit"]) == ("over-limit", "file_bytes")


@pytest.mark.skipif(find_sandbox("auto") != "bubblewrap", reason="no bubblewrap here")
def test_bubblewrap_is_not_chosen_where_memfit_does_not_start_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.sandbox.PACKAGES", ())
    assert find_sandbox("auto") != "bubblewrap"
    with pytest.raises(NoSandbox):
        find_sandbox("require")


def test_a_sandbox_can_be_required_or_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_sandbox("off") == "none"
    monkeypatch.setattr("service.sandbox._works", lambda command: False)
    assert find_sandbox("auto") == "none"
    with pytest.raises(NoSandbox, match="bubblewrap"):
        find_sandbox("require")
