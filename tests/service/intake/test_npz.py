"""Samples of numpy become safetensors with the same values; nothing pickled is opened."""

import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from planner.errors import BadSample
from service.intake.npz import is_npz, npz_as_safetensors
from service.sample_file import read_sample
from tests.service.intake.hostile import Canary

LIMIT = 2**20


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_keep_their_values(save: Any, tmp_path: Path) -> None:
    arrays = {"inputs.0": np.random.default_rng(0).normal(size=(4, 3, 5)).astype("float32"), "targets": np.arange(4)}
    save(tmp_path / "sample.npz", **arrays)
    assert is_npz(tmp_path / "sample.npz")
    npz_as_safetensors(tmp_path / "sample.npz", tmp_path / "sample.safetensors", LIMIT)
    summary = read_sample(tmp_path / "sample.safetensors")
    assert (summary.count, [tensor.dtype for tensor in summary.tensors]) == (4, ["float32", "int64"])
    got = load_file(tmp_path / "sample.safetensors")
    assert got.keys() == arrays.keys()
    assert all(np.array_equal(got[name], value) for name, value in arrays.items())


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros(2**21, "uint8"), "more than"),
        (np.asfortranarray(np.ones((3, 2))), "Fortran"),
        (np.ones(3, ">f4"), ">f4"),
        (np.array(["a"]), "<U1"),
        (np.ones(3, "complex64"), "<c8"),
    ],
)
def test_what_is_no_plain_array_is_refused(array: Any, why: str, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "sample.npz", **{"inputs.0": array})
    with pytest.raises(BadSample, match=why):
        npz_as_safetensors(tmp_path / "sample.npz", tmp_path / "sample.safetensors", LIMIT)


def test_pickled_objects_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "sample.npz", **{"inputs.0": np.array([Canary(tmp_path / "canary")], dtype=object)})
    with pytest.raises(BadSample, match="would run code"):
        npz_as_safetensors(tmp_path / "sample.npz", tmp_path / "sample.safetensors", LIMIT)
    assert not (tmp_path / "canary").exists()


def header_bomb(archive: zipfile.ZipFile) -> None:
    """An array whose header says it is a hundred megabytes long, and is."""
    size = 100 * 2**20
    archive.writestr("inputs.0.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", size) + b" " * size, zipfile.ZIP_DEFLATED)


def list_bomb(archive: zipfile.ZipFile) -> None:
    """A list of a hundred thousand members."""
    archive.writestr("inputs.0.npy", b"")
    archive.filelist *= 100_000


def compressed_otherwise(archive: zipfile.ZipFile) -> None:
    """By a method that takes as much memory as the file asks for."""
    archive.writestr("inputs.0.npy", bytes(2**20), zipfile.ZIP_LZMA)


@pytest.mark.parametrize(("write", "why"), [(header_bomb, "no array"), (list_bomb, "damaged"), (compressed_otherwise, "compressed")])
def test_bombs_take_no_memory(write: Callable[[zipfile.ZipFile], None], why: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        write(archive)
    tracemalloc.start()
    with pytest.raises(BadSample, match=why):
        npz_as_safetensors(tmp_path / "bomb.npz", tmp_path / "sample.safetensors", LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "sample.npz", **{"inputs.0": np.ones((4, 4), "float32")})
    with zipfile.ZipFile(tmp_path / "sample.npz") as archive:
        data = archive.read("inputs.0.npy")
    for change in (
        data.replace(b"(4, 4)", b"(4, 9)"),
        data.replace(b"(4, 4)", b"(4, 1)"),
        data.replace(b"(4, 4)", b"(-4, )"),
        b"\x93NUMPY",
        b"x",
    ):
        with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
            archive.writestr("inputs.0.npy", change)
        with pytest.raises(BadSample):
            npz_as_safetensors(tmp_path / "lies.npz", tmp_path / "sample.safetensors", LIMIT)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "sample.npz").read_bytes()[:-30])
    with pytest.raises(BadSample, match="damaged"):
        npz_as_safetensors(tmp_path / "cut.npz", tmp_path / "sample.safetensors", LIMIT)
