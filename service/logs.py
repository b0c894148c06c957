"""The service's log: lines for people, or JSON objects, each with the request or job it is about."""

import json
import logging
import time
from contextvars import ContextVar
from typing import Literal
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Format = Literal["text", "json"]
FIELD = "x-request-id"
MAX_CHARACTERS = 100
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
job_id: ContextVar[str | None] = ContextVar("job_id", default=None)
logger = logging.getLogger("service.requests")


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request": request_id.get(),
            "job": job_id.get(),
        } | getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value is not None})


def set_up(format: Format) -> None:
    """Write the log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if format == "json" else logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("alembic").setLevel(logging.WARNING)  # what it is about to look at is no news


class RequestLog:
    """ASGI middleware: gives every request an id, its own or a new one, and writes a line when it has been answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(FIELD, "")
        id = given if given.isprintable() and 0 < len(given) <= MAX_CHARACTERS else str(uuid4())
        begin, status = time.monotonic(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[FIELD] = id
            await send(message)

        token = request_id.set(id)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            seconds = round(time.monotonic() - begin, 4)
            facts = {"method": scope["method"], "path": scope["path"], "status": status, "seconds": seconds}
            logger.info("%s %s %s in %s s", scope["method"], scope["path"], status, seconds, extra={"facts": facts})
            request_id.reset(token)
