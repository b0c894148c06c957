"""The zip archive of a `.pt2`: stored members with known names, each there once and as large as it says."""

import io
import os
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from service.intake.refusal import damaged, refusal

ZIP_HEAD = b"PK\x03\x04"
MAX_MEMBERS = 200_000
MAX_JSON_BYTES = 64 * 2**20
MAX_LIST_BYTES = 64 * 2**20
NAMES = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|models/model\.json|extra/.+"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt"
)
# What zipfile raises for files that only begin as one; it was not written for hostile ones.
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError, OSError, struct.error)


class Sparing(io.FileIO):
    """A file of which only so much is read at once. zipfile reads an archive's list of members whole, as long as that claims to be."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        super().__init__(path)
        self._most_bytes = most_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = size if size is not None and size >= 0 else os.fstat(self.fileno()).st_size - self.tell()
        if wanted > self._most_bytes:
            raise zipfile.BadZipFile(f"{wanted:,} bytes are more than one reads at once")
        return super().read(size)


class Archive:
    """An uploaded archive whose members have been checked; their bytes have not."""

    def __init__(self, zip_file: zipfile.ZipFile, root: str, members: dict[str, zipfile.ZipInfo]) -> None:
        self._zip, self._root, self._members = zip_file, root, members

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        """Bytes of a member.

        Raises:
            BadModel: there is none.
        """
        if name not in self._members:
            raise damaged(f"it has no member {name!r}", member=name)
        return self._members[name].file_size

    def json(self, name: str) -> bytes:
        """A member that is a document.

        Raises:
            BadModel: there is none, or it is larger than any.
        """
        if self.size(name) > MAX_JSON_BYTES:
            raise refusal(f"member {name!r} is larger than the {MAX_JSON_BYTES:,} bytes that a program may have", member=name)
        return b"".join(self.chunks(name))

    def chunks(self, name: str, size: int = 2**20) -> Iterator[bytes]:
        """A member's bytes, checked against its size and its checksum.

        Raises:
            BadModel: they are not all there, or others than those saved.
        """
        expected, got = self.size(name), 0
        try:
            with self._zip.open(self._members[name]) as member:
                while chunk := member.read(size):
                    got += len(chunk)
                    yield chunk
        except ZIP_ERRORS as error:
            raise damaged(f"member {name!r} cannot be read", member=name) from error
        if got != expected:
            raise damaged(f"member {name!r} has {got:,} of its {expected:,} bytes", member=name)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an upload.

    Raises:
        BadModel: what it is instead of a `.pt2`, or which member does not belong in one.
    """
    with Sparing(path, MAX_LIST_BYTES) as file:
        _check_head(file)
        try:
            archive = zipfile.ZipFile(file)
            entries = archive.infolist()
        except ZIP_ERRORS as error:
            raise damaged("it begins as a .pt2 does, but has no list of members at its end") from error
        with archive:
            root = _root(archive, entries)
            members = {entry.filename.partition("/")[2]: _checked(entry, root) for entry in entries}
            _check_whole(entries, path.stat().st_size)
            opened = Archive(archive, root, members)
            if (kind := opened.json("archive_format")[:40].strip()) != b"pt2":
                raise refusal(f"the archive says it is {kind!r}, not 'pt2'")
            if "byteorder" in opened and opened.json("byteorder").strip() != b"little":
                raise refusal("the archive's tensors are not in little-endian order")
            yield opened


def _check_head(file: IO[bytes]) -> None:
    head = file.read(4)
    if head != ZIP_HEAD:
        what = "empty" if not head else "a pickle, which would run code when opened" if head.startswith(b"\x80") else "not a .pt2"
        raise refusal(f"the file is {what}")


def _root(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> str:
    """The folder in the archive that everything is in."""
    names = set(archive.namelist())
    if min((entry.header_offset for entry in entries), default=0) != 0:
        # The end of the file is missing, and what was found is the archive of example inputs inside it.
        raise damaged("its list of members is that of an archive inside it")
    if len(entries) > MAX_MEMBERS:
        raise refusal(f"the archive holds {len(entries):,} members; a model may have {MAX_MEMBERS:,}")
    root = entries[0].filename.partition("/")[0] if entries else ""
    if f"{root}/archive_format" in names:
        return root
    if f"{root}/data.pkl" in names:
        what = "a TorchScript file" if any(name.startswith(f"{root}/code/") for name in names) else "a pickle written by torch.save"
        raise refusal(f"the file is {what}, not an exported program; it would run code when opened")
    raise refusal("the file is a zip archive, but no .pt2: it has no member 'archive_format'")


def _check_whole(entries: list[zipfile.ZipInfo], file_bytes: int) -> None:
    # torch finds members without regard to case
    twice = len({entry.filename.lower() for entry in entries}) < len(entries)
    if twice or sum(entry.file_size for entry in entries) > file_bytes:
        raise refusal("the archive holds a member twice")


def _checked(entry: zipfile.ZipInfo, root: str) -> zipfile.ZipInfo:
    top, _, name = entry.filename.partition("/")
    if ".." in entry.filename.split("/") or "\\" in entry.filename or top != root or entry.filename.startswith("/"):
        raise refusal(f"the archive holds a member that points out of it, {entry.filename[:200]!r}", member=entry.filename)
    if re.fullmatch(r"data/(weights|constants)/[^/]+\.pt", name):
        raise refusal(f"the archive holds its tensors as a pickle, {entry.filename[:200]!r}: it is of an old torch", member=entry.filename)
    if re.fullmatch(r"data/constants/(custom|opaque)_obj_\d+", name):
        raise refusal(f"the archive holds an object, {name!r}: only tensors may be constants of a model", member=entry.filename)
    if not NAMES.fullmatch(name):
        raise refusal(f"the archive holds {entry.filename[:200]!r}, which is no part of an exported program", member=entry.filename)
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
        raise refusal(
            f"member {entry.filename[:200]!r} is compressed or encrypted, which torch never does: was the file packed again?",
            member=entry.filename,
        )
    return entry
