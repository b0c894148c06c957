"""Where finished files are kept: a folder of this machine, or an object store that machines share. Keys are `KIND/ab/abcd….SUFFIX`."""

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that is kept. `placed_at`: when it was last put, in seconds since 1970."""

    key: str
    bytes: int
    placed_at: float


class Artifacts(Protocol):
    """Files by key. One that is there is whole, and never changes."""

    def put(self, key: str, file: Path) -> None:
        """Bring a finished file to its place as well. Files of one key are equal: it may replace an older one."""

    def has(self, key: str) -> bool: ...

    def local(self, key: str) -> Path:
        """The file, on this machine, to be read within the hour.

        Raises:
            FileNotFoundError: there is none.
        """

    def read(self, key: str) -> bytes:
        """A small file that may change.

        Raises:
            FileNotFoundError: there is none.
        """

    def listed(self, folder: str) -> Iterator[Kept]:
        """All that is kept in a folder."""

    def remove(self, key: str) -> None: ...


class Folder:
    """Files of this machine. Those that are put are on the same disk already: they get a second name."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, file: Path) -> None:
        place = self._root / key
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{file.name}")
        os.link(file, part)
        part.replace(place)
        part.unlink(missing_ok=True)  # it is still there if both were the same file already
        os.utime(place)  # its age says how long nothing has referred to it
        _sync_folder(place.parent)

    def has(self, key: str) -> bool:
        return (self._root / key).exists()

    def local(self, key: str) -> Path:
        return self._root / key

    def read(self, key: str) -> bytes:
        return (self._root / key).read_bytes()

    def listed(self, folder: str) -> Iterator[Kept]:
        for path in (self._root / folder).glob("*/[!.]*"):
            found = path.stat()
            yield Kept(str(path.relative_to(self._root)), found.st_size, found.st_mtime)

    def remove(self, key: str) -> None:
        (self._root / key).unlink(missing_ok=True)


class Cache:
    """Copies of what an object store has, whole or not there. Those not used for longest go first."""

    SECONDS_KEPT = 2 * 3600.0  # a stage may read a file as long as it runs

    def __init__(self, root: Path, most_bytes: int) -> None:
        self._root, self._most_bytes = root, most_bytes

    def find(self, key: str) -> Path | None:
        place = self._root / key
        try:
            os.utime(place)
        except FileNotFoundError:
            return None
        return place

    def fill(self, key: str, pieces: Iterator[memoryview | bytes]) -> Path:
        """Write a file from its pieces; what is not of its digest is not kept.

        Raises:
            OSError: the bytes are not those of the key's digest.
        """
        place, got = self._root / key, hashlib.sha256()
        place.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=place.parent, delete=False) as file:
            part = Path(file.name)
            try:
                for piece in pieces:
                    got.update(piece)
                    file.write(piece)
                file.flush()
                if got.hexdigest() != place.stem:
                    raise OSError(f"what the object store has as {key} is not of that digest")
                part.replace(place)
            finally:
                part.unlink(missing_ok=True)
        return place

    def shrink(self) -> None:
        """Remove the copies used longest ago, until all are few enough bytes."""
        found = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._root.rglob("*") if path.is_file())
        total, before = sum(size for _, size, _ in found), time.time() - self.SECONDS_KEPT
        for used, size, path in found:
            if total <= self._most_bytes or used > before:
                return
            path.unlink(missing_ok=True)
            total -= size


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
