"""Models and samples: uploaded once, known by the digest of their bytes."""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from datetime import datetime
from typing import Annotated

from fastapi import Path, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from models import ModelRecord, SampleRecord
from service.access import CallerDep, calls, check_file, check_held, hold
from service.body import Body
from service.busy import UploadConflict
from service.context import Context, ContextDep
from service.documents import MODEL_SUMMARY, SAMPLE_SUMMARY
from service.keys import Caller
from service.problems import InvalidRequest, NotFound
from service.receive import media_type, receive_body, receive_json, receive_parts
from service.resumable import find_upload, offset_of, remove_upload
from service.store import Draft, Kind
from service.summary import ModelInput, ModelParameter, SampleTensor
from service.taking_in import examine_model, examine_sample, keep_files, keep_model, keep_sample

DIGEST = "SHA-256 of the file, in hex."
DigestPath = Annotated[str, Path(description=DIGEST, examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])]


# ---- schemas


class ModelAnswer(BaseModel):
    """A stored model: what it takes, gives and holds."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description=DIGEST)
    bytes: int = Field(description="Size of the file.")
    inputs: tuple[ModelInput, ...] = Field(description="What it takes; an axis of null may have any size.")
    outputs: tuple[str, ...] = Field(description="What it gives; a loss output:NAME may use one.")
    parameters: tuple[ModelParameter, ...]
    buffers_bytes: int
    operations: dict[str, int] = Field(description="How often each kind of operation occurs.")
    created_at: datetime


class SampleAnswer(BaseModel):
    """A stored sample: its tensors."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description=DIGEST)
    bytes: int = Field(description="Size of the file.")
    count: int = Field(description="Samples: the first axis of every tensor.")
    tensors: tuple[SampleTensor, ...]
    created_at: datetime


# ---- queries


def find_model(session: Session, digest: str) -> ModelRecord:
    """
    Raises:
        NotFound: there is none.
    """
    record = session.get(ModelRecord, digest)
    if record is None:
        raise NotFound("model", digest, "Upload it with POST /v1/models; its answer has the id.")
    return record


def find_sample(session: Session, digest: str) -> SampleRecord:
    """
    Raises:
        NotFound: there is none.
    """
    record = session.get(SampleRecord, digest)
    if record is None:
        raise NotFound("sample", digest, "Upload it with POST /v1/samples; its answer has the id.")
    return record


# ---- routes

router = calls("/v1")
FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": {"$ref": "#/components/schemas/UploadBody"}},
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
            },
        },
    }
}


@router.post("/models", status_code=status.HTTP_201_CREATED, tags=["models"], openapi_extra=FILE_BODY)
async def upload_model(request: Request, response: Response, caller: CallerDep, context: ContextDep) -> ModelAnswer:
    """Take in a model: a `.pt2` file as torch.export.save writes it, raw or as the part `file`. 200 if it was here before."""
    async with _received(request, caller, context, "models") as draft:

        def keep() -> tuple[ModelAnswer, bool]:
            upload = examine_model(caller, context, draft)
            keep_files(context, upload)
            with context.database.transaction() as session:
                check_file(session, caller, "model", draft.digest, draft.new_bytes)
                record, new = keep_model(context, session, upload)
                hold(session, caller, "model", record.digest)
                return _model_answer(record), new

        answer, new = await context.opening.run(keep)
    response.status_code = status.HTTP_201_CREATED if new else status.HTTP_200_OK
    response.headers["location"] = f"/v1/models/{answer.id}"
    return answer


@router.get("/models/{id}", tags=["models"])
def get_model(id: DigestPath, caller: CallerDep, context: ContextDep) -> ModelAnswer:
    """What a stored model takes, gives and holds."""
    with context.database.reading() as session:
        check_held(session, caller, "model", id)
        return _model_answer(find_model(session, id))


@router.post("/samples", status_code=status.HTTP_201_CREATED, tags=["samples"], openapi_extra=FILE_BODY)
async def upload_sample(request: Request, response: Response, caller: CallerDep, context: ContextDep) -> SampleAnswer:
    """Take in a sample: safetensors or .npz, with inputs.0, … and targets, raw or as the part `file`. 200 if it was here before."""
    async with _received(request, caller, context, "samples") as draft:

        def keep() -> tuple[SampleAnswer, bool]:
            upload = examine_sample(caller, context, draft)
            keep_files(context, upload)
            with context.database.transaction() as session:
                check_file(session, caller, "sample", draft.digest, draft.new_bytes)
                record, new = keep_sample(context, session, upload)
                hold(session, caller, "sample", record.digest)
                return _sample_answer(record), new

        answer, new = await run_in_threadpool(keep)
    response.status_code = status.HTTP_201_CREATED if new else status.HTTP_200_OK
    response.headers["location"] = f"/v1/samples/{answer.id}"
    return answer


@router.get("/samples/{id}", tags=["samples"])
def get_sample(id: DigestPath, caller: CallerDep, context: ContextDep) -> SampleAnswer:
    """The tensors of a stored sample."""
    with context.database.reading() as session:
        check_held(session, caller, "sample", id)
        return _sample_answer(find_sample(session, id))


class UploadBody(Body):
    """A finished resumable upload to take in."""

    upload: str = Field(description="Its id.", examples=["7a5ee492-b500-4199-b154-762c80bbfb7f"])


@asynccontextmanager
async def _received(request: Request, caller: Caller, context: Context, kind: Kind) -> AsyncIterator[Draft]:
    """The file of a request: its body, its part `file`, or the resumable upload it names. That one is gone if the block succeeds."""
    if media_type(request) == "application/json":
        id = UploadBody.read(await receive_json(request)).upload
        with context.uploads.holding(id), await run_in_threadpool(_finished, caller, context, id, kind) as draft:
            yield draft
            await run_in_threadpool(remove_upload, caller, context, id)
        return
    with context.store.draft(kind, context.settings.max_upload_bytes) as draft:
        if media_type(request) != "multipart/form-data":
            await receive_body(request, draft.write)
        elif not await receive_parts(request, {"file": draft.write}):
            raise InvalidRequest("the body has no part 'file'. Send the file as that part, or as the whole body.")
        yield draft


def _finished(caller: Caller, context: Context, id: str, kind: Kind) -> AbstractContextManager[Draft]:
    with context.database.reading() as session:
        check_held(session, caller, "upload", id)
        record = find_upload(session, id)
    if (there := offset_of(context, id)) < record.bytes:
        raise UploadConflict(f"{there:,} of the upload's {record.bytes:,} bytes are there. Send the rest first.", offset=there)
    return context.store.finished_upload(id, kind)


def _model_answer(record: ModelRecord) -> ModelAnswer:
    summary = MODEL_SUMMARY.validate_json(record.summary_json)
    return ModelAnswer(
        id=record.digest,
        bytes=record.bytes,
        inputs=summary.inputs,
        outputs=summary.outputs,
        parameters=summary.parameters,
        buffers_bytes=summary.buffers_bytes,
        operations=summary.operations,
        created_at=record.created_at,
    )


def _sample_answer(record: SampleRecord) -> SampleAnswer:
    summary = SAMPLE_SUMMARY.validate_json(record.summary_json)
    return SampleAnswer(id=record.digest, bytes=record.bytes, count=summary.count, tensors=summary.tensors, created_at=record.created_at)
