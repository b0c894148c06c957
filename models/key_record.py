"""A key: who may call the service, for what, and how much."""

from datetime import datetime

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Record, UtcDateTime, new_id, now


class KeyRecord(Record):
    """One API key. Its secret is shown once, when it is made.

    Attributes:
        secret_digest: SHA-256 of the secret, in hex; 256 random bits need no slow hash.
        scopes: of `read`, `write` and `admin`, with spaces between.
        requests_per_minute, active_jobs, stored_bytes: most it may have; without limit if None.
    """

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200))
    secret_digest: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[str] = mapped_column(String(100))
    requests_per_minute: Mapped[int | None]
    active_jobs: Mapped[int | None]
    stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class HoldingRecord(Record):
    """What a key holds: a model, sample, profile, plan, job or upload. The same bytes may be held by several."""

    __tablename__ = "holdings"

    key_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    subject_id: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)
