"""Files by the digest of their bytes: written once, never changed, the same bytes twice are one file."""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp, mkstemp
from typing import BinaryIO, Literal

from service.problems import Problem

Kind = Literal["models", "programs", "samples", "profiles", "checkpoints"]  # models: uploads, which nothing opens but the intake
SUFFIXES: dict[Kind, str] = {"models": ".pt2", "programs": ".pt2", "samples": ".safetensors", "profiles": ".json", "checkpoints": ".pt2"}


CHUNK_BYTES = 2**20


class StorageFull(Problem):
    """The disk of the data folder is full."""

    kind, title, status = "storage-full", "The disk is full", 507

    def __init__(self) -> None:
        super().__init__(
            "the service has no room left on its disk, and kept nothing of this file. Free space in its data folder, then try again."
        )


class TooLarge(Problem):
    """A file is larger than the service takes."""

    kind, title, status = "too-large", "The file is too large", 413

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the file is larger than the {limit_bytes:,} bytes this service takes. Send a smaller one, or raise MEMFIT_MAX_UPLOAD_BYTES.",
            limit_bytes=limit_bytes,
        )


class Draft:
    """A file on its way into the store: hashed while it is written, gone unless it is kept.

    Attributes:
        rewritten: a place for what is kept in its stead; gone with it.
    """

    def __init__(self, file: BinaryIO, path: Path, limit_bytes: int | None) -> None:
        self.path, self.rewritten, self.size = path, path.with_name(f"{path.stem}-rewritten{path.suffix}"), 0
        self._file, self._hash, self._limit_bytes = file, hashlib.sha256(), limit_bytes

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            TooLarge: more than the limit.
            StorageFull: no room on the disk.
        """
        self.size += len(data)
        if self._limit_bytes is not None and self.size > self._limit_bytes:
            raise TooLarge(self._limit_bytes)
        self._hash.update(data)
        with full_disk_is_a_problem():
            self._file.write(data)

    def finish(self) -> None:
        """Bring all bytes to the disk: what is kept survives a power cut."""
        with full_disk_is_a_problem():
            self._file.flush()
            os.fsync(self._file.fileno())

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


class FinishedUpload(Draft):
    """A draft whose bytes came before: they are counted and hashed when it is finished."""

    def finish(self) -> None:
        while chunk := self._file.read(CHUNK_BYTES):
            self.size += len(chunk)
            self._hash.update(chunk)


class Store:
    """A folder of content-addressed files, `KIND/ab/abcd….SUFFIX`, and a folder `work` for what is in progress, on the same disk."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._work, self._logs, self._uploads = self.root / "work", self.root / "logs", self.root / "uploads"

    def open(self) -> None:
        """Make the folders and throw away the work of a server that died. Only the one owner of the folder may call this."""
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        self._logs.mkdir(exist_ok=True)
        self._uploads.mkdir(exist_ok=True)

    def log(self, name: str) -> Path:
        """Where the processes of a job, or of an upload, leave what they print."""
        return self._logs / f"{name}.log"

    def path(self, kind: Kind, digest: str) -> Path:
        return self.root / kind / digest[:2] / f"{digest}{SUFFIXES[kind]}"

    @contextmanager
    def draft(self, kind: Kind, limit_bytes: int | None = None) -> Iterator[Draft]:
        """A draft that is removed at the end of the block if it was not kept."""
        with full_disk_is_a_problem():
            descriptor, name = mkstemp(dir=self._work, suffix=SUFFIXES[kind])
            with os.fdopen(descriptor, "wb") as file:
                draft = Draft(file, Path(name), limit_bytes)
                try:
                    yield draft
                finally:
                    draft.path.unlink(missing_ok=True)
                    draft.rewritten.unlink(missing_ok=True)

    def upload(self, id: str) -> Path:
        """Where a resumable upload is collected."""
        return self._uploads / id

    @contextmanager
    def appending(self, id: str, limit_bytes: int) -> Iterator[Callable[[bytes], None]]:
        """Takes the next bytes of a resumable upload, up to its size. What was taken is on the disk after the block, however it ends.

        Raises:
            TooLarge: more than its size.
            StorageFull: no room on the disk.
        """
        with full_disk_is_a_problem(), self.upload(id).open("ab") as file:

            def take(data: bytes) -> None:
                if file.tell() + len(data) > limit_bytes:
                    raise TooLarge(limit_bytes)
                file.write(data)

            try:
                yield take
            finally:
                file.flush()
                os.fsync(file.fileno())

    @contextmanager
    def finished_upload(self, id: str, kind: Kind) -> Iterator[Draft]:
        """A resumable upload as a draft. It stays after the block, unless it was kept."""
        path = self._work / f"{id}{SUFFIXES[kind]}"
        with self.upload(id).open("rb+") as file:
            draft = FinishedUpload(file, path, None)
            os.link(self.upload(id), path)
            try:
                yield draft
            finally:
                path.unlink(missing_ok=True)
                draft.rewritten.unlink(missing_ok=True)

    def keep(self, kind: Kind, draft: Draft) -> Path:
        """Move a finished draft to its place."""
        return self.place(kind, draft.path, draft.digest)

    def keep_bytes(self, kind: Kind, data: bytes) -> str:
        """Write bytes to their place; their digest."""
        with self.draft(kind) as draft:
            draft.write(data)
            draft.finish()
            self.keep(kind, draft)
            return draft.digest

    def keep_file(self, kind: Kind, file: Path) -> str:
        """Move a file of a workspace to its place; its digest."""
        digest = finished_digest(file)
        self.place(kind, file, digest)
        return digest

    def remove(self, kind: Kind, unwanted: Callable[[str], bool], older_than_seconds: float) -> int:
        """Remove files by their digest, if they were placed long enough ago; their bytes."""
        return _remove((self.root / kind).glob(f"*/*{SUFFIXES[kind]}"), unwanted, older_than_seconds)

    def remove_uploads(self, unwanted: Callable[[str], bool], older_than_seconds: float) -> int:
        """Remove resumable uploads by their id, if nothing came to them for long enough; their bytes."""
        return _remove(self._uploads.iterdir(), unwanted, older_than_seconds)

    def stored_bytes(self) -> int:
        """Bytes of all files that are kept."""
        return sum(path.stat().st_size for kind in SUFFIXES for path in (self.root / kind).glob("*/*"))

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder that is gone after the block."""
        with full_disk_is_a_problem():
            folder = Path(mkdtemp(dir=self._work))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def place(self, kind: Kind, file: Path, digest: str) -> Path:
        """Move a finished file of that digest to its place. Files of one digest are equal, so it may replace an older one."""
        place = self.path(kind, digest)
        with full_disk_is_a_problem():
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
            os.utime(place)  # its age says how long nothing has referred to it
            _sync_folder(place.parent)
        return place


def _remove(paths: Iterable[Path], unwanted: Callable[[str], bool], older_than_seconds: float) -> int:
    freed, before = 0, time.time() - older_than_seconds
    for path in paths:
        if unwanted(path.stem) and (found := path.stat()).st_mtime <= before:
            path.unlink()
            freed += found.st_size
    return freed


def finished_digest(file: Path) -> str:
    """The digest of a file whose bytes are all on the disk then."""
    with full_disk_is_a_problem(), file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        os.fsync(opened.fileno())
    return digest


@contextmanager
def full_disk_is_a_problem() -> Iterator[None]:
    """Within the block, a disk or quota that is full raises `StorageFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull from error
        raise


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
