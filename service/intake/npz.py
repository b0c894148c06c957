"""Samples that numpy wrote: the arrays of an `.npz`, written anew as safetensors. No pickle is opened."""

import json
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from planner.errors import BadSample
from service.intake.archive import ZIP_ERRORS, ZIP_HEAD, Sparing

REMEDY = 'Write it with numpy.savez("sample.npz", **{"inputs.0": images, "targets": labels}), of plain numbers in C order.'
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
MAX_ARRAYS = 1000
CHUNK_BYTES = 2**20


def is_npz(path: Path) -> bool:
    """Whether a file is a zip archive, as `.npz` files are and safetensors files are not."""
    with path.open("rb") as file:
        return file.read(4) == ZIP_HEAD


def npz_as_safetensors(source: Path, target: Path, limit_bytes: int) -> None:
    """Write the arrays of an `.npz` as a safetensors file of the same names, at most `limit_bytes` of them.

    Raises:
        BadSample: it holds something else than plain arrays, or more than the limit.
    """
    try:
        with Sparing(source, 2 * CHUNK_BYTES) as opened, zipfile.ZipFile(opened) as archive:
            names = [entry.filename for entry in archive.infolist()]
            if len(names) > MAX_ARRAYS or len(set(names)) < len(names):
                raise BadSample(f"the .npz holds {len(names):,} arrays, or one twice. {REMEDY}")
            if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in archive.infolist()):
                raise BadSample(f"the .npz is compressed as numpy never does. {REMEDY}")
            header = _header(archive, names, limit_bytes)
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            with target.open("wb") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                for name in names:
                    _copy(archive, name, file)
    except ZIP_ERRORS as error:
        raise BadSample(f"the .npz is damaged or cut short. {REMEDY}") from error


def _header(archive: zipfile.ZipFile, names: list[str], limit_bytes: int) -> dict[str, Any]:
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        with _array(archive, name) as (_, dtype, shape):
            start, end = end, end + prod(shape) * dtype.itemsize
            if end > limit_bytes:
                raise BadSample(f"the .npz unpacks to more than {limit_bytes:,} bytes. Send fewer samples.", limit_bytes=limit_bytes)
            header[name.removesuffix(".npy")] = {"dtype": DTYPES[dtype.name], "shape": shape, "data_offsets": [start, end]}
    return header


@contextmanager
def _array(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[IO[bytes], "np.dtype[Any]", tuple[int, ...]]]:
    """An array's file, where its data begins, with its dtype and shape."""
    with archive.open(name) as file:
        try:
            version = npy.read_magic(file)
            if version != (1, 0):  # which plain arrays have; headers of later ones may be gigabytes long
                raise ValueError
            shape, fortran, dtype = npy.read_array_header_1_0(file)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise BadSample(f"the .npz holds {name[:200]!r}, which is no array. {REMEDY}", tensor=name[:200]) from None
        if dtype.name not in DTYPES or dtype.byteorder == ">" or (fortran and len(shape) > 1) or any(size < 0 for size in shape):
            what = "Python objects, which would run code when opened" if dtype.hasobject else f"{dtype.str}{' in Fortran order' * fortran}"
            raise BadSample(f"array {name[:200]!r} of the .npz holds {what}. {REMEDY}", tensor=name[:200], dtype=dtype.str)
        yield file, dtype, tuple(int(size) for size in shape)


def _copy(archive: zipfile.ZipFile, name: str, target: IO[bytes]) -> None:
    with _array(archive, name) as (file, dtype, shape):
        left = prod(shape) * dtype.itemsize
        while left and (chunk := file.read(min(CHUNK_BYTES, left))):
            target.write(chunk)
            left -= len(chunk)
        if left or file.read(1):
            raise BadSample(f"array {name[:200]!r} of the .npz has {'fewer' if left else 'more'} bytes than its shape. {REMEDY}")
