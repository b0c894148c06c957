"""Errors as problem documents (RFC 9457): one shape for an answer, a failed job, and what a child process reports.

Problem                   anything that has a document
├── NotFound                no such thing
├── UnsupportedBody         a body that is neither of the kinds a call takes
├── InvalidRequest          a body that cannot be read
├── StageProblem            what a stage's child process reported, or how it died (`service.stage_process`)
├── StorageFull             the disk is full
├── TooLarge                a file is (`service.store`)
├── Away                    the database or the object store is (`service.outages`)
└── …                       each beside what raises it

`planner.errors.PlannerError` is no Problem, since the planner knows no HTTP; `document_of` gives it a document all the same.
"""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic_core import ErrorDetails, to_jsonable_python

from planner.errors import PlannerError, UnverifiedPlan

INTERNAL = "internal"
FULL = (errno.ENOSPC, errno.EDQUOT)  # what a disk says, or a quota


@dataclass(frozen=True, slots=True)
class ProblemDocument:
    """What went wrong, for people (`title`, `detail` with the next step) and for programs (`kind`, `facts`)."""

    kind: str
    title: str
    status: int
    detail: str
    facts: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The document's members, the facts among them."""
        return self.facts | {"type": f"/problems/{self.kind}", "title": self.title, "status": self.status, "detail": self.detail}


class Problem(Exception):
    """Base of the service's own errors. `kind` is stable and names the error; `facts` are members of its document."""

    kind: ClassVar[str] = "problem"
    title: ClassVar[str] = "The request cannot be answered"
    status: ClassVar[int] = 422

    def __init__(self, detail: str, **facts: object) -> None:
        self.facts: Mapping[str, object] = facts
        super().__init__(detail)

    @property
    def document(self) -> ProblemDocument:
        return ProblemDocument(self.kind, self.title, self.status, str(self), to_jsonable_python(dict(self.facts), fallback=str))


class NotFound(Problem):
    """There is no such thing."""

    kind, title, status = "not-found", "There is no such thing", 404

    def __init__(self, what: str, id: str, made_by: str) -> None:
        super().__init__(f"there is no {what} {id!r}. {made_by}", what=what, id=id)


class UnsupportedBody(Problem):
    """The body is of a kind this call does not take."""

    kind, title, status = "unsupported-media-type", "The body is of a kind this call does not take", 415


class InvalidRequest(Problem):
    """The body cannot be read, or its members are not those of the call."""

    kind, title, status = "invalid-request", "The request is not valid", 422

    @classmethod
    def of(cls, errors: Sequence[ErrorDetails]) -> "InvalidRequest":
        """From pydantic's findings: where each is, and what is wrong there."""
        found = [{"where": ".".join(str(part) for part in error["loc"]) or "body", "what": _said(error)} for error in errors]
        first = "; ".join(f"{error['where']}: {error['what']}" for error in found[:3])
        return cls(f"{first}{'; …' if len(found) > 3 else ''}. The members of every call are described at /docs.", errors=found)


def _said(error: ErrorDetails) -> str:
    """What pydantic found, without its words for Python's types."""
    match error["type"]:
        case "extra_forbidden":
            return "There is no such member"
        case "model_type" | "model_attributes_type":
            return "Input should be an object"
        case _:
            return error["msg"].removeprefix("Value error, ")


class StorageFull(Problem):
    """The disk of the data folder is full."""

    kind, title, status = "storage-full", "The disk is full", 507

    def __init__(self) -> None:
        super().__init__(
            "the service has no room left on its disk, and kept nothing of this request. Free space in its data folder, then try again."
        )


def document_of(error: Exception) -> ProblemDocument:
    """The document of an error; of one that is not meant for users, `internal`, with nothing of its insides."""
    match error:
        case Problem():
            return error.document
        case PlannerError():
            status = 500 if isinstance(error, UnverifiedPlan) or type(error) is PlannerError else 422
            return ProblemDocument(error.kind, error.title, status, str(error), to_jsonable_python(dict(error.facts), fallback=str))
        case _:
            detail = "the service made a mistake, which its log describes. Please report it with the log."
            return ProblemDocument(INTERNAL, "The service made a mistake", 500, detail, {})


def over_limit(stage: str, limit: str, value: float) -> ProblemDocument:
    """A stage that took more than one may: `cpu_seconds`, `wall_seconds` or `file_bytes`."""
    setting = "MEMFIT_MAX_UPLOAD_BYTES" if limit == "file_bytes" else "MEMFIT_STAGE_SECONDS"
    detail = (
        f"the stage {stage!r} took more than its {value:,.0f} {limit.replace('_', ' ')}, and was ended. "
        f"Use a smaller model, sample or batch_size, or raise {setting}."
    )
    return ProblemDocument("over-limit", "The stage took more than it may", 422, detail, {"stage": stage, "limit": limit, "most": value})


def out_of_memory(stage: str, reason: str) -> ProblemDocument:
    """A stage that needed more memory than the service's machine gives."""
    detail = (
        f"the stage {stage!r} ran out of memory ({reason}): a plain training step of this model has to fit on the service's machine "
        "once. Use a smaller batch_size, or give the service more memory (MEMFIT_STAGE_MEMORY_BYTES)."
    )
    return ProblemDocument("out-of-memory", "The service's machine has too little memory", 507, detail, {"stage": stage})
