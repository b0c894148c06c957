"""Starts the child process of a stage, hears its progress, and ends it when it is no longer wanted."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock, Timer
from typing import IO

import service
from planner.errors import InfeasibleBudget
from planner.plan import Correction, Plan, Proof
from planner.profile import Profile
from planner.request import PlanRequest, ProfileSettings
from service.documents import MODEL_SUMMARY, PLAN, PROFILE, PROOF
from service.limits import Limits
from service.problems import INTERNAL, Problem, ProblemDocument, out_of_memory, over_limit
from service.protocol import (
    MESSAGE,
    RESULT_FILE,
    TASK,
    TASK_FILE,
    CompareSpec,
    InspectSpec,
    ProblemMessage,
    ProfileSpec,
    ProgressMessage,
    ProveSpec,
    ResultMessage,
    SolveSpec,
    Spec,
    Task,
)
from service.sandbox import Confinement, unconfined, wrapped
from service.summary import ModelSummary

Progress = Callable[[float, str], None]
KEPT_VARIABLES = {"PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MEMFIT_NATIVE", "CUDA_VISIBLE_DEVICES"}
SECONDS_TO_END = 30.0
SHELL_SIGNAL = 128
FIRST = 1  # process of a sandbox: bubblewrap itself, which ends with the server


class StageProblem(Problem):
    """A stage failed; the document is what its process reported, or says how that died."""

    def __init__(self, document: ProblemDocument) -> None:
        super().__init__(document.detail, **document.facts)
        self._document = document

    @property
    def document(self) -> ProblemDocument:
        return self._document

    @property
    def names_log(self) -> bool:
        """Whether the document sends its reader to the log."""
        return "log" in self._document.facts

    def with_log(self, log: str) -> "StageProblem":
        """The same, for a reader who finds the log elsewhere."""
        return StageProblem(_with_log(self._document, log))


class Cancelled(Exception):
    """The work was cancelled while it ran."""


class Cancellation:
    """Ends, from any thread, whatever process works under it, now or later."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._cancelled = False
        self._process: subprocess.Popen[str] | None = None

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._process is not None:
                end_group(self._process)

    def check(self) -> None:
        """
        Raises:
            Cancelled: if it is.
        """
        if self._cancelled:
            raise Cancelled

    @contextmanager
    def watching(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """Within the block, to cancel is to end `process`."""
        with self._lock:
            self._process = process
            if self._cancelled:
                end_group(process)
        try:
            yield
        finally:
            with self._lock:
                self._process = None


def _unobserved(stage: str, seconds: float, peak_bytes: int) -> None:
    """What nobody counts."""


@dataclass(frozen=True)
class Stages:
    """The stages of a job, each in a process of its own (`service.child`).

    Attributes:
        folder: an empty folder to work in; whoever made it removes it.
        observe: hears of every stage that is done its seconds and its most memory.
        confinement: by default only what the machine itself sets, for models of one's own.
        log: a file that gets what the processes print, tracebacks included.
    """

    folder: Path
    log: Path
    cancellation: Cancellation
    confinement: Confinement = field(default_factory=unconfined)
    observe: Callable[[str, float, int], None] = _unobserved

    def inspect(self, upload: Path, program: Path) -> ModelSummary:
        """What an uploaded model is. What may be opened of it is in `program`, in the folder, and only that is given to other stages."""
        return MODEL_SUMMARY.validate_json(self._run(InspectSpec(upload.absolute(), program.absolute()), _unheard))

    def profile(self, model: Path, sample: Path, settings: ProfileSettings, progress: Progress) -> Profile:
        return PROFILE.validate_json(self._run(ProfileSpec(model.absolute(), sample.absolute(), settings), progress))

    def solve(self, profile: Profile, request: PlanRequest, corrections: tuple[Correction, ...]) -> Plan:
        """
        Raises:
            InfeasibleBudget: no plan fits the budget.
        """
        try:
            return PLAN.validate_json(self._run(SolveSpec(profile, request, corrections), _unheard))
        except StageProblem as problem:
            if problem.document.kind != InfeasibleBudget.kind:
                raise
            raise InfeasibleBudget(**problem.document.facts) from problem

    def compare(self, profile: Profile, request: PlanRequest, plan: Plan) -> Plan:
        """The plan, with what simpler ways would give."""
        return PLAN.validate_json(self._run(CompareSpec(profile, request, plan), _unheard))

    def prove(self, model: Path, sample: Path, profile: Profile, plan: Plan, out: Path, progress: Progress) -> Proof:
        """The proof; the patched checkpoint is in `out`."""
        return PROOF.validate_json(self._run(ProveSpec(model.absolute(), sample.absolute(), profile, plan, out.absolute()), progress))

    def _run(self, spec: Spec, progress: Progress) -> bytes:
        """The stage's result, as JSON.

        Raises:
            StageProblem: the stage failed, or its process died.
            Cancelled: the process was ended because nobody wants it any more.
        """
        self.cancellation.check()
        begin = time.monotonic()
        limits, sandbox = self.confinement.limits, self.confinement.sandbox
        (self.folder / TASK_FILE).write_bytes(TASK.dump_json(Task(spec, limits, sandbox == "namespaces")))
        parent = FIRST if sandbox == "bubblewrap" else os.getpid()
        command = [sys.executable, "-P", "-m", "service.child", str(self.folder), str(parent)]
        command = wrapped(sandbox, command, reads(spec), self.folder)
        with (
            self.log.open("ab") as log,
            _started(command, self.folder, log) as process,
            self.cancellation.watching(process),
            _deadline(process, limits.wall_seconds) as late,
        ):
            problem, done = None, False
            assert process.stdout is not None
            for line in process.stdout:
                match MESSAGE.validate_json(line):
                    case ProgressMessage(fraction, message):
                        progress(fraction, message)
                    case ProblemMessage(found):
                        problem = found
                    case ResultMessage(peak_bytes):
                        done = True
                        self.observe(spec.stage, time.monotonic() - begin, peak_bytes)
            _wait(process)
        self.cancellation.check()
        if problem is not None:
            raise StageProblem(_with_log(problem, self.log.name))
        if not done and late.is_set():
            raise StageProblem(over_limit(spec.stage, "wall_seconds", limits.wall_seconds))
        if not done:
            raise StageProblem(_with_log(_problem_of_death(spec.stage, process.returncode, limits), self.log.name))
        return (self.folder / RESULT_FILE).read_bytes()


def reads(spec: Spec) -> list[Path]:
    """The files a stage reads."""
    match spec:
        case InspectSpec(model):
            return [model]
        case ProfileSpec(model, sample) | ProveSpec(model, sample):
            return [model, sample]
        case _:
            return []


@contextmanager
def _deadline(process: subprocess.Popen[str], seconds: float) -> Iterator[Event]:
    """End the process if it is not done in time; the event tells that it was late."""
    late = Event()

    def end() -> None:
        late.set()
        end_group(process)

    timer = Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


@contextmanager
def _started(command: list[str], folder: Path, log: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """A child process in a session, with an environment and a home of its own; it and all it started are gone after the block."""
    environment = {name: value for name, value in os.environ.items() if name in KEPT_VARIABLES or name.startswith("LC_")}
    environment |= {
        "HOME": str(folder),
        "USER": "memfit",
        "TMPDIR": str(folder),
        "PYTHONPATH": str(Path(service.__file__).parents[1]),
        "PYTHONUNBUFFERED": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while others have the cores make a busy machine stand still
        "OPENBLAS_NUM_THREADS": "1",  # numpy starts threads at import; with threads no process leaves the network
    }
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=folder,
        env=environment,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            end_group(process)


def _wait(process: subprocess.Popen[str]) -> None:
    """Let a process that has said all end by itself, for a while."""
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        end_group(process)
        process.wait()


def end_group(process: subprocess.Popen[str]) -> None:
    """Kill a process and all it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _problem_of_death(stage: str, returncode: int, limits: Limits) -> ProblemDocument:
    if returncode > SHELL_SIGNAL:  # bubblewrap tells a signal as shells do
        returncode = SHELL_SIGNAL - returncode
    if returncode == -signal.SIGXCPU:
        return over_limit(stage, "cpu_seconds", limits.cpu_seconds)
    if returncode == -signal.SIGKILL:
        return out_of_memory(stage, "its process was killed")
    how = f"was ended by {signal.Signals(-returncode).name}" if returncode < 0 else f"ended with code {returncode}"
    detail = f"the process of the stage {stage!r} {how} before it had a result; the job's log has the rest. Please report it with the log."
    return ProblemDocument(INTERNAL, "The service made a mistake", 500, detail, {"stage": stage, "returncode": returncode})


def _with_log(document: ProblemDocument, log: str) -> ProblemDocument:
    """Name the log where it has more than the document."""
    if document.status < 500:
        return document
    return replace(document, facts=document.facts | {"log": log})


def _unheard(fraction: float, message: str) -> None:
    """Progress of a stage too short to show any."""
