"""Files by the digest of their bytes: written once, never changed, the same bytes twice are one file."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp, mkstemp
from typing import BinaryIO, Literal

from service.artifacts import Artifacts, Folder, Kept
from service.problems import FULL, Problem, StorageFull

Kind = Literal["models", "programs", "samples", "profiles", "checkpoints"]  # models: uploads, which nothing opens but the intake
SUFFIXES: dict[Kind, str] = {"models": ".pt2", "programs": ".pt2", "samples": ".safetensors", "profiles": ".json", "checkpoints": ".pt2"}
CHUNK_BYTES = 2**20
SECONDS_BETWEEN_COUNTS = 60.0


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

    @property
    def new_bytes(self) -> int:
        """Bytes that do not count as its sender's yet."""
        return self.size


class FinishedUpload(Draft):
    """A draft whose bytes came before: they are counted and hashed when it is finished."""

    @property
    def new_bytes(self) -> int:
        return 0  # they count as those of the upload, until it is taken in

    def finish(self) -> None:
        while chunk := self._file.read(CHUNK_BYTES):
            self.size += len(chunk)
            self._hash.update(chunk)


class Store:
    """Content-addressed files, and a folder of this process's own for what is in progress.

    `artifacts` and `uploads` (where resumable uploads are collected, on the same disk): by default in that folder, too.
    """

    def __init__(self, root: Path, artifacts: Artifacts | None = None, uploads: Path | None = None) -> None:
        self.root = root.absolute()
        self._artifacts = artifacts or Folder(self.root)
        self._shared = artifacts is not None
        self._counted_bytes, self._counted_at = 0, 0.0
        self._work, self._logs, self._uploads = self.root / "work", self.root / "logs", (uploads or self.root / "uploads").absolute()

    def open(self) -> None:
        """Make the folders and throw away the work of a server that died. Only the one owner of the folder may call this."""
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        self._logs.mkdir(exist_ok=True)
        self._uploads.mkdir(exist_ok=True)

    def log(self, name: str) -> Path:
        """Where the processes of a job, or of an upload, leave what they print."""
        return self._logs / f"{name}.log"

    def shared_log(self, name: str) -> bytes:
        """What a process of another machine left, if it has ended."""
        try:
            return self._artifacts.read(_log_key(name)) if self._shared else b""
        except FileNotFoundError:
            return b""

    def share_log(self, name: str) -> None:
        """Let other machines read a log that is finished; it is not kept here then."""
        if self._shared and self.log(name).exists():
            self._artifacts.put(_log_key(name), self.log(name))
            self.log(name).unlink()

    def remove_logs(self, unwanted: Callable[[str], bool], older_than_seconds: float) -> int:
        """Remove logs of this process by their name, if nothing was printed to them for long enough; their bytes."""
        return _remove_files(self._logs, unwanted, older_than_seconds)

    def remove_log(self, name: str) -> None:
        self.log(name).unlink(missing_ok=True)
        if self._shared:
            self._artifacts.remove(_log_key(name))

    def path(self, kind: Kind, digest: str) -> Path:
        """A kept file, to be read on this machine.

        Raises:
            Away: the store does not answer.
            FileNotFoundError: there is none, in a store that is elsewhere.
        """
        with full_disk_is_a_problem():
            return self._artifacts.local(_key(kind, digest))

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

    def cut_upload(self, id: str, size: int) -> None:
        """Leave only the first bytes of a resumable upload."""
        os.truncate(self.upload(id), size)

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

    def keep(self, kind: Kind, file: Path, digest: str) -> None:
        """Keep a finished file of that digest."""
        with full_disk_is_a_problem():
            self._artifacts.put(_key(kind, digest), file)

    def keep_still(self, kind: Kind, file: Path, digest: str) -> None:
        """Keep a file that was kept shortly before, should the collector have taken it for forgotten.

        Called in the transaction that names the file: the collector removes in transactions that run alone.
        """
        if not self._artifacts.has(_key(kind, digest)):
            self.keep(kind, file, digest)

    def older(self, kind: Kind, seconds: float) -> dict[str, Kept]:
        """Files that were kept at least so long ago, by digest."""
        before = time.time() - seconds
        return {digest_of(kept): kept for kept in self._artifacts.listed(kind) if kept.placed_at <= before}

    def remove(self, kept: Kept) -> None:
        self._artifacts.remove(kept.key)

    def remove_uploads(self, unwanted: Callable[[str], bool], older_than_seconds: float) -> int:
        """Remove resumable uploads by their id, if nothing came to them for long enough; their bytes."""
        return _remove_files(self._uploads, unwanted, older_than_seconds)

    def stored_bytes(self) -> int:
        """Bytes of all files that are kept, as they were within the last minute where they are elsewhere."""
        if not self._shared or time.monotonic() - self._counted_at > SECONDS_BETWEEN_COUNTS:
            self._counted_bytes = sum(kept.bytes for kind in SUFFIXES for kept in self._artifacts.listed(kind))
            self._counted_at = time.monotonic()
        return self._counted_bytes

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder that is gone after the block."""
        with full_disk_is_a_problem():
            folder = Path(mkdtemp(dir=self._work))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_files(folder: Path, unwanted: Callable[[str], bool], older_than_seconds: float) -> int:
    freed, before = 0, time.time() - older_than_seconds
    for path in folder.iterdir():
        if unwanted(path.stem) and (found := path.stat()).st_mtime <= before:
            path.unlink()
            freed += found.st_size
    return freed


def _key(kind: Kind, digest: str) -> str:
    return f"{kind}/{digest[:2]}/{digest}{SUFFIXES[kind]}"


def digest_of(kept: Kept) -> str:
    return kept.key.rpartition("/")[2].partition(".")[0]


def _log_key(name: str) -> str:
    return f"logs/{name[:2]}/{name}.log"


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
        if error.errno in FULL:
            raise StorageFull from error
        raise
