"""API keys: made, shown once, found by their digest."""

import hashlib
import secrets
import time
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from typing import Literal

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from models import KeyRecord
from models.base import now
from service.problems import Problem

PREFIX = "memfit_"
Scope = Literal["read", "write", "admin"]
SECONDS_TO_KNOW, MOST_KNOWN = 1.0, 10_000


class NotAllowed(Problem):
    """There is no valid key, where one is needed."""

    kind, title, status = "unauthorized", "A key is needed", 401

    def __init__(self, detail: str) -> None:
        self.headers = {"www-authenticate": "Bearer"}
        super().__init__(detail)


class Forbidden(Problem):
    """The key is not for this."""

    kind, title, status = "forbidden", "The key is not for this", 403


class NoKeys(RuntimeError):
    """The service would listen to others without knowing them."""

    def __init__(self, host: str) -> None:
        super().__init__(f"there is no valid key, so the service does not listen on {host!r}. Make one with 'memfit keys add NAME' first.")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        key: None where the service has no keys, and listens to this machine alone: it may do all then.
    """

    key: KeyRecord | None

    @property
    def key_id(self) -> str:
        return self.key.id if self.key is not None else ""

    @property
    def sees_all(self) -> bool:
        return self.key is None or "admin" in self.key.scopes.split()

    def check_scope(self, scope: Scope) -> None:
        """
        Raises:
            Forbidden: the key has it not.
        """
        if self.key is not None and not {scope, "admin"} & set(self.key.scopes.split()):
            raise Forbidden(f"the key {self.key.name!r} has the scopes {self.key.scopes!r}, and this needs {scope!r}. Use another key.")


class Callers:
    """Callers of the last second. A key that is revoked holds for as long."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Caller, float]] = {}

    def find(self, authorization: str | None) -> Caller | None:
        caller, at = self._known.get(_digest(authorization or ""), (None, 0.0))
        return caller if time.monotonic() - at < SECONDS_TO_KNOW else None

    def keep(self, authorization: str | None, caller: Caller) -> None:
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[_digest(authorization or "")] = caller, time.monotonic()


def add_key(
    session: Session, name: str, scopes: tuple[Scope, ...], expires_at: datetime | None, **limits: int | None
) -> tuple[KeyRecord, str]:
    """A new key, and its secret, which is kept nowhere."""
    secret = PREFIX + secrets.token_urlsafe(32)
    record = KeyRecord(name=name, secret_digest=_digest(secret), scopes=" ".join(scopes), expires_at=expires_at, **limits)
    session.add(record)
    session.flush()
    return record, secret


def caller_of(session: Session, authorization: str | None) -> Caller:
    """Who a request comes from, by its `Authorization: Bearer …`.

    Raises:
        NotAllowed: the service has keys, and this is none of them that holds.
    """
    scheme, _, secret = (authorization or "").partition(" ")
    record = session.scalar(select(KeyRecord).where(KeyRecord.secret_digest == _digest(secret.strip())))
    if record is None and session.scalar(select(func.count()).select_from(KeyRecord)) == 0:
        return Caller(None)
    if record is None or scheme.lower() != "bearer":
        raise NotAllowed("this service needs a key: send it as 'Authorization: Bearer memfit_…'. Who runs the service makes one.")
    if record.revoked_at is not None or (record.expires_at is not None and record.expires_at <= now()):
        raise NotAllowed(f"the key {record.name!r} was revoked or has expired. Ask for a new one.")
    return Caller(record)


def check_keys_for(session: Session, host: str) -> None:
    """
    Raises:
        NoKeys: the address is not this machine's own, and no key holds.
    """
    valid = KeyRecord.revoked_at.is_(None) & or_(KeyRecord.expires_at.is_(None), KeyRecord.expires_at > now())
    if not _is_loopback(host) and not session.scalar(select(func.count()).select_from(KeyRecord).where(valid)):
        raise NoKeys(host)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"  # any other name may be this machine's to others


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
