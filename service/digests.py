"""Digests of bodies and files in HTTP fields (RFC 9530): `sha-256=:BASE64:`. Other algorithms are not looked at."""

import base64
import binascii
import re

from service.problems import Problem

MEMBER = re.compile(r"\s*sha-256=:([A-Za-z0-9+/=]*):\s*")


class BadDigest(Problem):
    """A digest field that cannot be read, or is not that of the body."""

    kind, title, status = "bad-digest", "The digest is not that of the body", 400


def digest_field(digest: str) -> str:
    """The value of `Repr-Digest` for a SHA-256 in hex."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"


def expected_digest(field: str | None) -> str | None:
    """The SHA-256, in hex, that a `Content-Digest` gives; None if it gives none.

    Raises:
        BadDigest: it cannot be read.
    """
    for member in (field or "").split(","):
        if member.strip().lower().startswith("sha-256="):
            try:
                value = base64.b64decode(MEMBER.fullmatch(member)[1], validate=True)  # type: ignore[index]
            except (TypeError, binascii.Error):
                value = b""
            if len(value) != 32:
                raise BadDigest(f"Content-Digest {member.strip()[:100]!r} cannot be read. Write it as sha-256=:BASE64:, as RFC 9530 says.")
            return value.hex()
    return None


def check_digest(expected: str | None, got: str) -> None:
    """
    Raises:
        BadDigest: they differ.
    """
    if expected is not None and expected != got:
        raise BadDigest(f"the body has the SHA-256 {got}, not {expected} as its Content-Digest. Send it again.", expected=expected, got=got)
