"""Requests that may be sent again: one with an Idempotency-Key is done once, and answered the same ever after (a day long).

A request is told from another by its method, path and body; of a multipart body, whose boundary changes, by its size.
"""

import hashlib
import json
from collections.abc import MutableMapping
from contextvars import ContextVar
from functools import partial
from typing import Any
from uuid import UUID, uuid5

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import delete
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models import ReplyRecord
from service.context import Context
from service.keys import caller_of
from service.notices import lives
from service.outages import OUTAGES, persistently
from service.problem_answers import answer_with_problem
from service.problems import InvalidRequest, Problem

FIELD = "idempotency-key"
MAX_CHARACTERS = 255
SECONDS_TO_NOTE_AN_ANSWER = 60.0
MADE_BY_REQUESTS = UUID("6ad1b0a5-7f0e-4f0c-9f0e-2d6d656d6669")
KEPT_FIELDS = (b"content-type", b"location", b"tus-resumable")

sent: ContextVar[str | None] = ContextVar("sent", default=None)  # the key, and the Idempotency-Key, of the request that is answered


def id_of_request() -> str | None:
    """An id for what a request makes, the same however often it is sent; None without an Idempotency-Key.

    The database may have made it, and have been killed before it said so.
    """
    who = sent.get()
    return str(uuid5(MADE_BY_REQUESTS, who)) if who is not None else None


class RequestUnderWay(Problem):
    """A request with the same key is being answered."""

    kind, title, status = "request-under-way", "The request is being answered", 409


class KeyReused(Problem):
    """The key was used for another request."""

    kind, title, status = "idempotency-key-reused", "The Idempotency-Key is of another request", 422


class Idempotency:
    """ASGI middleware: looks at POST requests with an Idempotency-Key, and at nothing else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope) if scope["type"] == "http" else None
        token = request.headers.get(FIELD) if request is not None and request.method == "POST" else None
        if request is None or token is None:
            await self._app(scope, receive, send)
            return
        try:
            if not 0 < len(token) <= MAX_CHARACTERS:
                raise InvalidRequest(f"the Idempotency-Key is empty, or longer than {MAX_CHARACTERS} characters. A UUID is a good one.")
            context: Context = request.app.state.context
            key_id, reply = await run_in_threadpool(_begin, context, request.headers.get("authorization"), token)
            body = _Body(request, receive)
            if reply is not None:
                await body.rest()
                await _again(reply, body.fingerprint, send)
                return
        except (Problem, *OUTAGES) as error:
            await (await answer_with_problem(request, error))(scope, receive, send)
            return
        await self._answer(request, context, key_id, token, body, send)

    async def _answer(self, request: Request, context: Context, key_id: str, token: str, body: "_Body", send: Send) -> None:
        answer, reset = _Answer(send), sent.set(f"{key_id} {token}")
        try:
            await self._app(request.scope, body.receive, answer.send)
            await body.rest()
        finally:
            sent.reset(reset)
            end = partial(_end, context, key_id, token, body.fingerprint, answer)
            try:
                await run_in_threadpool(end)
            except OUTAGES:
                await answer.go()  # an outage may last longer than the caller waits
                await run_in_threadpool(persistently, end, lambda: None, SECONDS_TO_NOTE_AN_ANSWER)
            else:
                await answer.go()


class _Body:
    """The body of a request, hashed as it goes by."""

    def __init__(self, request: Request, receive: Receive) -> None:
        self._receive, self._hash, self._size, self._over = receive, hashlib.sha256(), 0, False
        self._boundary = request.headers.get("content-type", "").startswith("multipart/")
        self._what = f"{request.method} {request.url.path}"

    async def receive(self) -> Message:
        message = await self._receive()
        data = message.get("body", b"")
        self._size += len(data)
        if not self._boundary:
            self._hash.update(data)
        self._over = self._over or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def rest(self) -> None:
        """Read what nobody read."""
        while not self._over:
            await self.receive()

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._what} {self._size} {self._hash.hexdigest()}".encode()).hexdigest()


class _Answer:
    """An answer, remembered, and held back until it is noted: who has it may send the request again at once. Answers to POST are small."""

    def __init__(self, send: Send) -> None:
        self._send, self.status, self.body = send, 0, bytearray()
        self.headers: list[tuple[str, str]] = []
        self._messages: list[Message] = []

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"] if name in KEPT_FIELDS]
        else:
            self.body += message.get("body", b"")
        self._messages.append(message)

    async def go(self) -> None:
        for message in self._messages:
            await self._send(message)


def _begin(context: Context, authorization: str | None, token: str) -> tuple[str, ReplyRecord | None]:
    """The caller's key, and the reply that was given; None if this is the first time, and noted so."""
    with context.database.transaction() as session:
        key_id = caller_of(session, authorization).key_id
        server = context.notices.server if context.notices is not None else None
        reply = session.get(ReplyRecord, (key_id, token))
        if reply is None:
            session.add(ReplyRecord(key_id=key_id, token=token, fingerprint="", server=server))
        elif reply.status is None:
            if reply.server is None or lives(session, reply.server):
                raise RequestUnderWay("a request with this Idempotency-Key is being answered. Send it again in a while.")
            reply.server, reply = server, None  # the server that answered it died
        return key_id, reply


def _end(context: Context, key_id: str, token: str, fingerprint: str, answer: _Answer) -> None:
    """Keep what was answered; nothing if that may be other the next time."""
    with context.database.transaction() as session:
        if answer.status == 0 or answer.status >= 500 or answer.status in (401, 403, 409, 429):
            session.execute(delete(ReplyRecord).where(ReplyRecord.key_id == key_id, ReplyRecord.token == token))
            return
        reply = session.get(ReplyRecord, (key_id, token)) or ReplyRecord(key_id=key_id, token=token)
        session.add(reply)
        reply.fingerprint, reply.status, reply.body = fingerprint, answer.status, answer.body.decode()
        reply.headers_json = json.dumps(answer.headers)


async def _again(reply: ReplyRecord, fingerprint: str, send: Send) -> None:
    if reply.fingerprint != fingerprint:
        raise KeyReused("this Idempotency-Key was sent with another request. Use a new one for every new request.")
    body = (reply.body or "").encode()
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in json.loads(reply.headers_json or "[]")]
    headers += [(b"content-length", str(len(body)).encode()), (b"idempotency-replayed", b"true")]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
