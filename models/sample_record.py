"""A sample: batches that stand for a device's data, by the digest of the file that was uploaded."""

from datetime import datetime

from sqlalchemy import BigInteger, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Record, UtcDateTime, now


class SampleRecord(Record):
    """One file. The same bytes twice are one record.

    Attributes:
        digest: SHA-256 of the file, in hex; the sample's id.
        content_digest: SHA-256 of the safetensors file it was made into; none of one that came as such.
        summary_json: a `service.summary.SampleSummary`: its tensors, by name, shape and dtype.
    """

    __tablename__ = "samples"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    content_digest: Mapped[str | None] = mapped_column(String(64))
    summary_json: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
