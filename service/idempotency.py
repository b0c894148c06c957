"""Requests that may be sent again: one with an Idempotency-Key is done once, and answered the same ever after (a day long).

A request is told from another by its method, path and body; of a multipart body, whose boundary changes, by its size.
"""

import hashlib
import json
from collections.abc import MutableMapping
from contextvars import ContextVar
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid5

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import update
from sqlalchemy.orm import Session
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
NOBODY = "nobody"  # works on a request that was not answered for good

sent: ContextVar[str | None] = ContextVar("sent", default=None)  # what tells the request that is answered from all others


def id_of_request() -> str | None:
    """An id for what a request makes, the same however often it is sent within a day; None without an Idempotency-Key.

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
            key_id, sent_first, reply = await run_in_threadpool(_begin, context, request.headers.get("authorization"), token)
            body = _Body(request, receive)
            if reply is not None:
                await body.rest()
                await _again(reply, body.fingerprint, send)
                return
        except (Problem, *OUTAGES) as error:
            await (await answer_with_problem(request, error))(scope, receive, send)
            return
        reset = sent.set(f"{key_id} {token} {sent_first.timestamp()}")
        try:
            await self._answer(request, context, key_id, token, body, send)
        finally:
            sent.reset(reset)

    async def _answer(self, request: Request, context: Context, key_id: str, token: str, body: "_Body", send: Send) -> None:
        answer = _Answer(send)
        try:
            await self._app(request.scope, body.receive, answer.send)
            await body.rest()
        finally:
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


def let_be_sent_again(session: Session) -> None:
    """Let requests that nobody answers any more be sent again. Only the one server of a database may ask, before it answers any."""
    session.execute(update(ReplyRecord).where(ReplyRecord.status.is_(None)).values(server=NOBODY))


def _begin(context: Context, authorization: str | None, token: str) -> tuple[str, datetime, ReplyRecord | None]:
    """The caller's key, when the request was first sent, and the reply that was given; None if it is to be answered, and noted so."""
    with context.database.transaction() as session:
        key_id = caller_of(session, authorization).key_id
        server = context.notices.server if context.notices is not None else None
        reply = session.get(ReplyRecord, (key_id, token))
        if reply is None:
            session.add(reply := ReplyRecord(key_id=key_id, token=token, fingerprint="", server=server))
            session.flush()
        elif reply.status is None:
            if reply.server != NOBODY and (reply.server is None or lives(session, reply.server)):
                raise RequestUnderWay("a request with this Idempotency-Key is being answered. Send it again in a while.")
            reply.server = server  # the one that answered it died
        return key_id, reply.created_at, reply if reply.status is not None else None


def _end(context: Context, key_id: str, token: str, fingerprint: str, answer: _Answer) -> None:
    """Keep what was answered; if that may be other the next time, only that it was sent."""
    with context.database.transaction() as session:
        reply = session.get(ReplyRecord, (key_id, token)) or ReplyRecord(key_id=key_id, token=token, fingerprint="")
        session.add(reply)
        if answer.status == 0 or answer.status >= 500 or answer.status in (401, 403, 409, 429):
            reply.server = NOBODY
            return
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
