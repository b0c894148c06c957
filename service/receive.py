"""Takes the bytes of a request as they arrive, to wherever they go: nothing large is held in memory."""

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from service.digests import check_digest, expected_digest
from service.problems import InvalidRequest, UnsupportedBody

CHUNK_BYTES = 2**20
MAX_JSON_BYTES = 2**20
Sink = Callable[[bytes], None]


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def said_type(request: Request) -> str:
    """The type of a body, for a refusal."""
    return f"the body is {kind!r}" if (kind := media_type(request)) else "the body has no Content-Type"


async def receive_json(request: Request) -> dict[str, Any]:
    """The members of a JSON body.

    Raises:
        UnsupportedBody: it is of another type.
        InvalidRequest: it is no JSON object, or larger than any.
    """
    if media_type(request) != "application/json":
        raise UnsupportedBody(f"{said_type(request)}. Send application/json or multipart/form-data.")
    text = Text()
    async for chunk in _chunks(request):
        text(chunk)
    return text.as_json()


async def receive_body(request: Request, sink: Sink) -> None:
    """A body that is a file, whole."""
    async for chunk in _chunks(request):
        await run_in_threadpool(sink, chunk)


async def receive_parts(request: Request, sinks: Mapping[str, Sink]) -> set[str]:
    """The parts of a multipart body, each to the sink of its name; the names that came.

    Raises:
        InvalidRequest: the body is malformed or cut short, or has a part that is not expected, or one twice.
    """
    _, options = parse_options_header(request.headers.get("content-type", ""))
    parts = _Parts(sinks)
    try:
        parser = MultipartParser(options.get(b"boundary", b""), parts.callbacks())
        async for chunk in _chunks(request):
            await run_in_threadpool(parser.write, chunk)
    except FormParserError as error:
        raise InvalidRequest(f"the multipart body is malformed: {error}. Let an HTTP library build it.") from error
    if not parts.ended:
        raise InvalidRequest("the multipart body is cut short: its last boundary is missing. Send it again.")
    return parts.seen


class Text:
    """A sink for a small JSON document."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __call__(self, data: bytes) -> None:
        self._bytes += data
        if len(self._bytes) > MAX_JSON_BYTES:
            raise InvalidRequest(f"the request's JSON is larger than {MAX_JSON_BYTES:,} bytes. Leave out what is not described at /docs.")

    def as_json(self) -> dict[str, Any]:
        try:
            content = json.loads(self._bytes)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f'the request is not JSON: {error}. Send an object such as {{"budget": "64 MiB"}}.') from error
        if not isinstance(content, dict):
            raise InvalidRequest('the request\'s JSON is not an object. Send an object such as {"budget": "64 MiB"}.')
        return content


class _Parts:
    """Follows a multipart parser from part to part."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = sinks
        self._sink: Sink | None = None
        self._field, self._value, self._disposition = bytearray(), bytearray(), b""
        self.seen: set[str] = set()
        self.ended = False

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._choose,
            "on_part_data": self._write,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition, self._sink = b"", None

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _choose(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._sinks:
            raise InvalidRequest(
                f"the body has a part {name!r}; this call takes {', '.join(self._sinks)}.", part=name, parts=list(self._sinks)
            )
        if name in self.seen:
            raise InvalidRequest(f"the body has the part {name!r} twice. Send it once.", part=name)
        self.seen.add(name)
        self._sink = self._sinks[name]

    def _write(self, data: bytes, start: int, end: int) -> None:
        if self._sink is not None:
            self._sink(data[start:end])

    def _end(self) -> None:
        self.ended = True


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces large enough that handing one to another thread costs little, checked against its `Content-Digest`."""
    expected, got = expected_digest(request.headers.get("content-digest")), hashlib.sha256()
    buffer = bytearray()
    try:
        async for piece in request.stream():
            if expected is not None:
                got.update(piece)
            buffer += piece
            if len(buffer) >= CHUNK_BYTES:
                yield bytes(buffer)
                buffer.clear()
    except ClientDisconnect:
        if buffer and expected is None:
            yield bytes(buffer)  # an upload may go on behind what came
        raise
    if expected is not None:
        check_digest(expected, got.hexdigest())
    if buffer:
        yield bytes(buffer)
