"""Files as answers: ranges, conditions and digests, in constant memory."""

import re
from pathlib import Path

from fastapi import Request, Response, status
from fastapi.responses import FileResponse

from service.digests import digest_field
from service.problems import Problem

RANGES = re.compile(r"\s*bytes\s*=\s*(\d*-\d*(\s*,\s*\d*-\d*)*)\s*", re.IGNORECASE)
MAX_RANGES = 16


class RangeNotSatisfiable(Problem):
    """Every range begins behind the end of the file."""

    kind, title, status = "range-not-satisfiable", "The range lies outside the file", 416

    def __init__(self, size: int) -> None:
        self.headers = {"content-range": f"bytes */{size}"}
        super().__init__(
            f"the file has {size:,} bytes, and the range begins behind them: the download is complete, or of another file.", bytes=size
        )


def file_answer(request: Request, path: Path, digest: str, name: str) -> Response:
    """A file that never changes, or the part of it that is asked for. Its ETag is its digest.

    Raises:
        RangeNotSatisfiable: none of it is asked for.
    """
    etag = f'"{digest}"'
    headers = {"etag": etag, "repr-digest": digest_field(digest), "cache-control": "private, immutable"}
    tags = request.headers.get("if-none-match", "").split(",")
    if {etag, "*"} & {tag.strip().removeprefix("W/") for tag in tags}:
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    size = path.stat().st_size
    ranges = _ranges(request.headers.get("range"), size)
    if ranges is None:  # what is no range is not looked at (RFC 9110, 14.2)
        request.scope["headers"] = [(field, value) for field, value in request.scope["headers"] if field != b"range"]
    elif request.headers.get("if-range", etag) == etag and not any(begin < size for begin in ranges):
        raise RangeNotSatisfiable(size)
    return FileResponse(path, media_type="application/octet-stream", filename=name, headers=headers)


def _ranges(field: str | None, size: int) -> list[int] | None:
    """Where the ranges begin; None if there are none that can be read."""
    found = RANGES.fullmatch(field or "")
    if found is None:
        return None
    begins = []
    for part in found[1].split(","):
        begin, _, end = (text.strip() for text in part.partition("-"))
        if (not begin and not end) or (begin and end and int(begin) > int(end)):
            return None
        begins.append(int(begin) if begin else max(size - int(end), 0) if int(end) else size)
    return begins if len(begins) <= MAX_RANGES else None
