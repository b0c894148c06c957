"""Runs one stage in a process of its own: `python -m service.child FOLDER PARENT_PID`.

Uploaded files are opened here and nowhere else, and jobs solve here. The process ends with its parent, and whatever torch prints goes to
the log.
"""

import ctypes
import errno
import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TextIO

from pydantic import TypeAdapter

from service.intake.rewrite import rewrite
from service.limits import keep_to
from service.problems import FULL, INTERNAL, ProblemDocument, StorageFull, document_of, out_of_memory, over_limit
from service.protocol import (
    MESSAGE,
    RESULT_FILE,
    TASK,
    TASK_FILE,
    CompareSpec,
    InspectSpec,
    Message,
    ProblemMessage,
    ProfileSpec,
    ProgressMessage,
    ResultMessage,
    SolveSpec,
    Spec,
    Task,
)
from service.sandbox import leave_network

# The last is what extensions say that had no memory left for an exception.
NO_MEMORY = re.compile(r"can't allocate memory|Cannot allocate memory|MemoryError|std::bad_alloc|error return without exception set")
NO_ROOM = re.compile(r"No space left on device|PytorchStreamWriter failed writing file")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    end_with(parent)
    task = TASK.validate_json((folder / TASK_FILE).read_bytes())
    keep_to(task.limits)
    if task.leave_network:
        leave_network()
    go_first_when_memory_ends()
    channel = take_standard_output()

    def send(message: Message) -> None:
        channel.write(MESSAGE.dump_json(message).decode() + "\n")
        channel.flush()

    def progress(fraction: float, message: str) -> None:
        send(ProgressMessage(min(max(fraction, 0.0), 1.0), message))

    try:
        result = run(task.spec, progress)
        (folder / RESULT_FILE).write_bytes(TypeAdapter(type(result)).dump_json(result))
    except Exception as error:
        traceback.print_exc()
        send(ProblemMessage(problem_of(error, task)))
    else:
        send(ResultMessage(1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))))


def run(spec: Spec, progress: Callable[[float, str], None]) -> object:
    """The stage's result, one of the planner's or the service's dataclasses."""
    match spec:
        case SolveSpec(profile, request, corrections):
            from planner.solver import solve  # each stage imports what it takes, and no more: solver and torch are slow to

            return solve(profile, request, corrections)
        case CompareSpec(profile, request, plan):
            from planner.alternatives import alternatives

            return replace(plan, alternatives=alternatives(profile, request, plan))
        case InspectSpec(model, program):
            rewrite(model, program)  # before torch is there to be misled

    from service import stages  # imports torch

    match spec:
        case InspectSpec(_, program):
            return stages.inspect_model(program)
        case ProfileSpec(model, sample, settings):
            return stages.make_profile(model, sample, settings, progress)
        case _:
            return stages.prove_plan(spec.model, spec.sample, spec.profile, spec.plan, spec.out, progress)


def problem_of(error: Exception, task: Task) -> ProblemDocument:
    """The problem to report. A traceback stays in the log: its last line, the stage and the log's name are what users see."""
    stage, document = task.spec.stage, document_of(error)
    last_line = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)) or document.facts.get("signal") == signal.SIGKILL:
        return out_of_memory(stage, last_line[:500])
    if (isinstance(error, OSError) and error.errno in FULL) or NO_ROOM.search(str(error)):
        return StorageFull().document
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return over_limit(stage, "file_bytes", task.limits.file_bytes)
    if document.kind != INTERNAL:
        print(document.facts.get("stderr", ""), file=sys.stderr)  # of a process that measured: it belongs into the log
        return replace(document, facts={name: fact for name, fact in document.facts.items() if name != "stderr"})
    detail = f"the stage {stage!r} stopped with {last_line!r}; the job's log has the rest. Please report it with the log."
    return ProblemDocument(INTERNAL, document.title, document.status, detail, {"stage": stage})


def take_standard_output() -> TextIO:
    """A channel on what was the standard output, which is the log from now on: torch and its libraries print to it."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def end_with(parent: int) -> None:
    """End this process and those it started when the parent dies, however it dies. Linux only; elsewhere a stage runs to its end."""
    if sys.platform != "linux":
        return

    def end_group(number: int, frame: FrameType | None) -> None:
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end_group)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the line above
        os.killpg(0, signal.SIGKILL)


def go_first_when_memory_ends() -> None:
    """Let Linux, out of memory, end this process rather than the server."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")


if __name__ == "__main__":
    main()
