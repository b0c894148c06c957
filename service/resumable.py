"""Uploads that go on where they were cut: the tus protocol 1.0, core with creation and termination (https://tus.io/protocols/resumable-upload).

A finished upload is named in `POST /v1/models` or `POST /v1/samples`, as `{"upload": ID}`, and is gone then.
"""

from typing import Annotated

from fastapi import Depends, Header, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from models import UploadRecord
from models.base import new_id
from service.access import CallerDep, IdPath, calls, check_bytes, check_held, hold, let_go
from service.busy import UploadConflict
from service.context import Context, ContextDep
from service.digests import BadDigest
from service.idempotency import id_of_request
from service.keys import Caller
from service.problems import InvalidRequest, NotFound, Problem, UnsupportedBody
from service.receive import media_type, receive_body, said_type
from service.store import TooLarge

VERSION, EXTENSIONS = "1.0.0", "creation,termination"
PIECE = "application/offset+octet-stream"
MADE_BY = "Begin one with POST /v1/uploads; its answer has the place."


class WrongProtocol(Problem):
    """Another version of tus, or none."""

    kind, title, status = "unsupported-protocol", "The version of tus is not supported", 412

    def __init__(self, got: str | None) -> None:
        self.headers = {"tus-version": VERSION}
        super().__init__(f"Tus-Resumable is {got!r}; this service speaks {VERSION}. Send that field with every request.")


def speaks_tus(response: Response, tus_resumable: Annotated[str | None, Header(examples=[VERSION])] = None) -> None:
    if tus_resumable != VERSION:
        raise WrongProtocol(tus_resumable)
    response.headers["tus-resumable"] = VERSION


def find_upload(session: Session, id: str) -> UploadRecord:
    """
    Raises:
        NotFound: there is none.
    """
    record = session.get(UploadRecord, id)
    if record is None:
        raise NotFound("upload", id, MADE_BY)
    return record


def offset_of(context: Context, id: str) -> int:
    """Bytes of an upload that are there."""
    path = context.store.upload(id)
    return path.stat().st_size if path.exists() else 0


def remove_upload(caller: Caller, context: Context, id: str) -> None:
    """Forget an upload, with its bytes."""
    with context.database.transaction() as session:
        session.delete(find_upload(session, id))
        let_go(session, caller, "upload", id)
    context.store.upload(id).unlink(missing_ok=True)


router = calls("/v1/uploads", "uploads")
TUS = [Depends(speaks_tus)]


@router.options("", status_code=status.HTTP_204_NO_CONTENT, operation_id="describe_uploads")
def describe_uploads(response: Response, context: ContextDep) -> None:
    """What of tus is spoken here, and how large a file may be."""
    response.headers["tus-resumable"] = response.headers["tus-version"] = VERSION
    response.headers["tus-extension"] = EXTENSIONS
    response.headers["tus-max-size"] = str(context.settings.max_upload_bytes)


@router.post("", dependencies=TUS, status_code=status.HTTP_201_CREATED, response_class=Response, operation_id="begin_upload")
def begin_upload(
    response: Response,
    caller: CallerDep,
    context: ContextDep,
    upload_length: Annotated[int | None, Header(ge=1, examples=[14_568_934])] = None,
) -> None:
    """Begin an upload of `Upload-Length` bytes. The answer's Location takes its pieces."""
    if upload_length is None:
        raise InvalidRequest("Upload-Length is missing: the size of the file in bytes. It must be known when the upload begins.")
    if upload_length > context.settings.max_upload_bytes:
        raise TooLarge(context.settings.max_upload_bytes)
    id = id_of_request() or new_id()
    with context.database.transaction() as session:
        if session.get(UploadRecord, id) is None:
            check_bytes(session, caller, upload_length)
            session.add(UploadRecord(id=id, bytes=upload_length))
            session.flush()
            hold(session, caller, "upload", id)
    response.headers["location"] = f"/v1/uploads/{id}"


@router.head("/{id}", dependencies=TUS, operation_id="get_upload")
def get_upload(id: IdPath, response: Response, caller: CallerDep, context: ContextDep) -> None:
    """How much of an upload is there: `Upload-Offset`."""
    with context.database.reading() as session:
        check_held(session, caller, "upload", id)
        record = find_upload(session, id)
    response.headers["upload-offset"], response.headers["upload-length"] = str(offset_of(context, id)), str(record.bytes)
    response.headers["cache-control"] = "no-store"


@router.patch(
    "/{id}",
    dependencies=TUS,
    status_code=status.HTTP_204_NO_CONTENT,
    operation_id="continue_upload",
    openapi_extra={"requestBody": {"required": True, "content": {PIECE: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def continue_upload(
    id: IdPath,
    request: Request,
    response: Response,
    caller: CallerDep,
    context: ContextDep,
    upload_offset: Annotated[int | None, Header(ge=0, examples=[0])] = None,
) -> None:
    """Append a piece at `Upload-Offset`. What came of a piece that was cut is kept: HEAD says from where to go on."""
    if media_type(request) != PIECE:
        raise UnsupportedBody(f"{said_type(request)}. Send pieces as {PIECE}.")
    with context.uploads.holding(id):
        record = await run_in_threadpool(_open, caller, context, id, upload_offset)
        try:
            with context.store.appending(id, record.bytes) as draft:
                await receive_body(request, draft)
        except BadDigest:
            await run_in_threadpool(context.store.cut_upload, id, upload_offset or 0)
            raise
    response.headers["upload-offset"] = str(await run_in_threadpool(offset_of, context, id))


@router.delete("/{id}", dependencies=TUS, status_code=status.HTTP_204_NO_CONTENT, operation_id="delete_upload")
def delete_upload(id: IdPath, caller: CallerDep, context: ContextDep) -> None:
    """Give an upload up. Its bytes are gone at once."""
    with context.database.reading() as session:
        check_held(session, caller, "upload", id)
    with context.uploads.holding(id):
        remove_upload(caller, context, id)


def _open(caller: Caller, context: Context, id: str, offset: int | None) -> UploadRecord:
    with context.database.reading() as session:
        check_held(session, caller, "upload", id)
        record = find_upload(session, id)
    if (there := offset_of(context, id)) != offset:
        raise UploadConflict(f"{there:,} bytes of the upload are there, and the piece begins at {offset}. Go on from there.", offset=there)
    return record
