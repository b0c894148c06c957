"""Runs one stage in a process of its own: `python -m service.child FOLDER PARENT_PID`.

Uploaded files are opened here and nowhere else. The process ends with its parent, and whatever torch prints goes to the log.
"""

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TextIO

from pydantic import TypeAdapter

from service.problems import INTERNAL, ProblemDocument, document_of, out_of_memory
from service.protocol import (
    MESSAGE,
    RESULT_FILE,
    SPEC,
    SPEC_FILE,
    InspectSpec,
    Message,
    ProblemMessage,
    ProfileSpec,
    ProgressMessage,
    ResultMessage,
    Spec,
)

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    end_with(parent)
    go_first_when_memory_ends()
    channel = take_standard_output()

    def send(message: Message) -> None:
        channel.write(MESSAGE.dump_json(message).decode() + "\n")
        channel.flush()

    def progress(fraction: float, message: str) -> None:
        send(ProgressMessage(min(max(fraction, 0.0), 1.0), message))

    spec = SPEC.validate_json((folder / SPEC_FILE).read_bytes())
    try:
        result = run(spec, progress)
        (folder / RESULT_FILE).write_bytes(TypeAdapter(type(result)).dump_json(result))
    except Exception as error:
        traceback.print_exc()
        send(ProblemMessage(problem_of(error, spec)))
    else:
        send(ResultMessage())


def run(spec: Spec, progress: Callable[[float, str], None]) -> object:
    """The stage's result, one of the planner's or the service's dataclasses."""
    from service import stages  # imports torch

    match spec:
        case InspectSpec(model):
            return stages.inspect_model(model)
        case ProfileSpec(model, sample, settings):
            return stages.make_profile(model, sample, settings, progress)
        case _:
            return stages.prove_plan(spec.model, spec.sample, spec.profile, spec.plan, spec.out, progress)


def problem_of(error: Exception, spec: Spec) -> ProblemDocument:
    """The problem to report. A traceback stays in the log: its last line, the stage and the log's name are what users see."""
    document = document_of(error)
    if document.kind != INTERNAL:
        print(document.facts.get("stderr", ""), file=sys.stderr)  # of a process that measured: it belongs into the log
        return replace(document, facts={name: fact for name, fact in document.facts.items() if name != "stderr"})
    last_line = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return out_of_memory(spec.stage, last_line)
    detail = f"the stage {spec.stage!r} stopped with {last_line!r}; the job's log has the rest. Please report it with the log."
    return ProblemDocument(INTERNAL, document.title, document.status, detail, {"stage": spec.stage})


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
