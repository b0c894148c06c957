"""A reply: what a request with an Idempotency-Key was answered, so that it is done once however often it is sent."""

from datetime import datetime

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Record, UtcDateTime, now


class ReplyRecord(Record):
    """One request and, once it is answered, its answer.

    Attributes:
        key_id: of the API key; empty where none is needed.
        fingerprint: of the request; the same key with another request is a mistake.
        server: that works on the request, where there are several; if it dies, another may. `nobody` if it is to be sent again.
        status: None while the request is worked on.
    """

    __tablename__ = "replies"

    key_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    token: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    server: Mapped[str | None] = mapped_column(String(36))
    status: Mapped[int | None]
    headers_json: Mapped[str | None] = mapped_column(Text)
    body: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
