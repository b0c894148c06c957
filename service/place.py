"""Where a process of the service works: a data folder that is its alone, or on a shared database a part of one."""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from service.settings import Settings
from service.store import Store


class DataInUse(RuntimeError):
    """Another server works with the same data folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"another memfit server uses {folder}. Stop it, or give this one a folder of its own (--data, MEMFIT_DATA_DIR).")


@contextmanager
def at_home(settings: Settings) -> Iterator[Store]:
    """The store of a process, opened: what a process that died here had in progress is gone.

    Raises:
        DataInUse: without a shared database, if another process works there.
    """
    with ExitStack() as stack:
        if settings.shared:
            store = Store(stack.enter_context(_owning_a_part(settings.data_dir)), settings.artifacts, settings.data_dir / "uploads")
        else:
            stack.enter_context(owning(settings.data_dir))
            store = Store(settings.data_dir)
        store.open()
        yield store


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The system lets go of it when the process ends, however it ends.

    Raises:
        DataInUse: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataInUse(folder.absolute()) from None
        yield


@contextmanager
def _owning_a_part(folder: Path) -> Iterator[Path]:
    """The first part of the folder that no other process has."""
    for number in count(1):
        part = folder / f"process-{number}"
        with ExitStack() as stack:
            try:
                stack.enter_context(owning(part))
            except DataInUse:
                continue
            yield part
            return
