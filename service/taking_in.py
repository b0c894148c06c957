"""How an uploaded file becomes a model or a sample: examined, kept, recorded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar
from uuid import uuid4

from sqlalchemy.orm import Session

from models import ModelRecord, SampleRecord
from service.access import check_file
from service.context import Context
from service.documents import MODEL_SUMMARY, SAMPLE_SUMMARY
from service.intake.npz import is_npz, npz_as_safetensors
from service.keys import Caller
from service.problems import NotFound
from service.sample_file import read_sample
from service.stage_process import Cancellation, StageProblem, Stages
from service.store import Draft, Kind, finished_digest
from service.summary import ModelSummary, SampleSummary

Summary = TypeVar("Summary", ModelSummary, SampleSummary)


@dataclass(frozen=True)
class Upload(Generic[Summary]):
    """A file that was found good, and is not kept yet.

    Attributes:
        content_digest: of what is to be kept in the draft's stead; None for the draft itself.
        kept: what is to be kept: its kind, where it is now, and its digest; None if all is kept already.
    """

    draft: Draft
    summary: Summary
    content_digest: str | None
    kept: tuple[Kind, Path, str] | None


def examine_model(caller: Caller, context: Context, draft: Draft) -> Upload[ModelSummary]:
    """Check an uploaded model, and write it anew; one that is stored already was checked then.

    Raises:
        TooMany: with it, the caller has more bytes than they may.
        StageProblem: it is no `.pt2`, or what it holds is refused, or it cannot be read as a program that trains.
    """
    draft.finish()
    with context.database.reading() as session:
        check_file(session, caller, "model", draft.digest, draft.new_bytes)
        record = session.get(ModelRecord, draft.digest)
    if record is not None:
        return Upload(draft, MODEL_SUMMARY.validate_json(record.summary_json), record.content_digest, None)
    log = context.store.log(f"upload-{uuid4()}")
    with context.store.workspace() as folder:
        try:
            program = folder / "program.pt2"
            summary = Stages(folder, log, Cancellation(), context.confinement).inspect(draft.path, program)
            program.replace(draft.rewritten)
        except StageProblem as problem:
            if not problem.names_log:
                log.unlink()
            raise
    log.unlink()
    content = finished_digest(draft.rewritten)
    return Upload(draft, summary, content, ("programs", draft.rewritten, content))


def examine_sample(caller: Caller, context: Context, draft: Draft) -> Upload[SampleSummary]:
    """Check an uploaded sample; one that is stored already was checked then.

    Raises:
        TooMany: with it, the caller has more bytes than they may.
        BadSample: it is no safetensors or .npz file, or its values cannot be used.
    """
    draft.finish()
    with context.database.reading() as session:
        check_file(session, caller, "sample", draft.digest, draft.new_bytes)
        record = session.get(SampleRecord, draft.digest)
    if record is not None:
        return Upload(draft, SAMPLE_SUMMARY.validate_json(record.summary_json), record.content_digest, None)
    if not is_npz(draft.path):
        return Upload(draft, read_sample(draft.path), None, ("samples", draft.path, draft.digest))
    npz_as_safetensors(draft.path, draft.rewritten, context.settings.max_upload_bytes)
    content = finished_digest(draft.rewritten)
    return Upload(draft, read_sample(draft.rewritten), content, ("samples", draft.rewritten, content))


def keep_files(context: Context, *uploads: "Upload[ModelSummary] | Upload[SampleSummary] | None") -> None:
    """Keep the files of uploads. Before the transaction of their records: with files elsewhere it takes a while."""
    for upload in uploads:
        if upload is not None and (file := upload.kept) is not None:
            context.store.keep(*file)


def keep_model(context: Context, session: Session, upload: Upload[ModelSummary]) -> tuple[ModelRecord, bool]:
    """The record of an upload whose file is kept, and whether it is new."""
    record = session.get(ModelRecord, upload.draft.digest)
    if record is not None:
        return record, False
    context.store.keep_still(*_kept("model", upload))
    record = ModelRecord(
        digest=upload.draft.digest,
        bytes=upload.draft.size,
        content_digest=upload.content_digest,
        summary_json=MODEL_SUMMARY.dump_json(upload.summary).decode(),
    )
    session.add(record)
    session.flush()
    return record, True


def keep_sample(context: Context, session: Session, upload: Upload[SampleSummary]) -> tuple[SampleRecord, bool]:
    """The record of an upload whose file is kept, and whether it is new."""
    record = session.get(SampleRecord, upload.draft.digest)
    if record is not None:
        return record, False
    context.store.keep_still(*_kept("sample", upload))
    record = SampleRecord(
        digest=upload.draft.digest,
        bytes=upload.draft.size,
        content_digest=upload.content_digest,
        summary_json=SAMPLE_SUMMARY.dump_json(upload.summary).decode(),
    )
    session.add(record)
    session.flush()
    return record, True


def _kept(what: str, upload: "Upload[ModelSummary] | Upload[SampleSummary]") -> tuple[Kind, Path, str]:
    if upload.kept is None:
        raise NotFound(what, upload.draft.digest, "It was deleted while it came again. Send it once more.")
    return upload.kept
