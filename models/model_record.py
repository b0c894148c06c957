"""A model: an exported program, by the digest of the file that was uploaded."""

from datetime import datetime

from sqlalchemy import BigInteger, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Record, UtcDateTime, now


class ModelRecord(Record):
    """One `.pt2` file. The same bytes twice are one record.

    Attributes:
        digest: SHA-256 of the file, in hex; the model's id.
        content_digest: SHA-256 of the program as it was written anew; none of a model that an older service kept as it came.
        summary_json: a `service.summary.ModelSummary`: what the program takes, gives and holds.
    """

    __tablename__ = "models"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    content_digest: Mapped[str | None] = mapped_column(String(64))
    summary_json: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
