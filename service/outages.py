"""Outages: what the database and the store of files raise while they are away or full, in words; and work that waits for their return."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.problems import FULL, Problem, StorageFull

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
SECONDS_OF_PATIENCE = 900.0
SECONDS_BETWEEN_TRIES = (0.1, 5.0)  # at first, at most


class Away(Problem):
    """The database or the object store does not answer now."""

    kind, title, status = "away", "The database or the object store is away", 503

    def __init__(self, what: str, reason: str) -> None:
        self.headers = {"retry-after": "5"}
        super().__init__(f"the {what} does not answer now ({reason}). Nothing was lost: send the request again in a while.", what=what)


OUTAGES = (DBAPIError, PendingRollbackError, PoolTimeout, OSError)  # what `outage_of` looks at


def outage_of(error: BaseException) -> Problem | None:
    """The problem that an error of the database or the store stands for; None if it is no outage."""
    match error:
        case Away() | StorageFull():
            return error
        case OSError() if error.errno in FULL:
            return StorageFull()
        case OperationalError() if "disk is full" in str(error.orig):  # as SQLite says it
            return StorageFull()
        case OperationalError() | InterfaceError():
            return Away("database", type(error.orig).__name__)
        case PendingRollbackError() | PoolTimeout():
            return Away("database", type(error).__name__)
        case DBAPIError() if error.connection_invalidated:
            return Away("database", type(error.orig).__name__)
        case _:
            return None


def persistently(work: Callable[[], Result], check: Callable[[], None], patience_seconds: float = SECONDS_OF_PATIENCE) -> Result:
    """Do what an outage may hinder, again and again until it is done. It must be work that can be done twice without harm.

    `check` is called between tries, and raises when the work is wanted no more.
    """
    wait, most = SECONDS_BETWEEN_TRIES
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return work()
        except Exception as error:
            outage = outage_of(error)
            if outage is None or time.monotonic() > deadline:
                raise
            logger.warning("waiting: %s", outage)
        check()
        time.sleep(wait)
        wait = min(2 * wait, most)
