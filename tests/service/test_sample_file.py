"""Samples are read as safetensors and torch read them, and refused where no gradient could come from them."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from planner.errors import BadSample
from service import sample_file as module
from service.sample_file import read_sample

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
FLOATS = [dtype for dtype in DTYPES if dtype.is_floating_point]


def write(path: Path, **tensors: torch.Tensor) -> Path:
    save_file({name.replace("_", "."): tensor for name, tensor in tensors.items()}, path)
    return path


def refuse(path: Path, why: str) -> BadSample:
    with pytest.raises(BadSample, match=why) as refused:
        read_sample(path)
    return refused.value


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_names_shapes_and_dtypes_are_those_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    path = write(tmp_path / "s", inputs_0=torch.ones(4, 3, 2).to(dtype), targets=torch.zeros(4, dtype=torch.int64))
    summary = read_sample(path)
    found = {tensor.name: (tensor.shape, f"torch.{tensor.dtype}") for tensor in summary.tensors}
    assert found == {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in load_file(path).items()}
    assert summary.count == 4


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(FLOATS),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    value=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    data=st.data(),
)
def test_the_first_value_that_is_not_finite_is_named(
    dtype: torch.dtype, shape: list[int], value: float, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensor = torch.randn(shape).to(dtype)
    for _ in range(data.draw(st.integers(1, 3))):
        tensor.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] = value
    error = refuse(write(tmp_path_factory.mktemp("s") / "s", inputs_0=tensor), "tensor 'inputs.0' holds (NaN|infinity) at index")
    assert error.facts["index"] == (~torch.isfinite(tensor)).nonzero()[0].tolist()
    assert error.facts["value"] == ("NaN" if value != value else "infinity")


def test_a_value_behind_the_first_chunk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_VALUES", 7)
    tensor = torch.zeros(5, 5)
    tensor[4, 1] = float("nan")
    assert refuse(write(tmp_path / "s", inputs_0=tensor), "NaN").facts["index"] == [4, 1]


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_anywhere_is_refused(share: float, sample_file: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = sample_file.read_bytes()
    cut = tmp_path_factory.mktemp("cut") / "s"
    cut.write_bytes(data[: int(share * len(data))])
    refuse(cut, "safetensors|cut short")


def craft(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[Any], start: Any, stop: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"not json", "header is not JSON"),
        ([1], "header is not JSON"),
        ({}, "has no inputs"),
        ({"targets": entry([2], 0, 8)}, "has no inputs"),
        ({"inputs.0": entry([2], 0, 8), "image": entry([0], 8, 8)}, "neither an input nor the targets"),
        ({"inputs.0": {"dtype": "F32"}}, "header is damaged"),
        ({"inputs.0": entry([2], 0, 8, dtype="F8_E4M3")}, "may hold F64, F32"),
        ({"inputs.0": entry([3], 0, 8)}, "cut short or damaged"),
        ({"inputs.0": entry([-2], 0, 8)}, "cut short or damaged"),
        ({"inputs.0": entry([2], -8, 0)}, "cut short or damaged"),
        ({"inputs.0": entry([True, 2], 0, 8)}, "cut short or damaged"),
        ({"inputs.0": entry([4], 0, 16)}, "cut short or damaged"),
        ({"inputs.0": entry([9] * 200_000, 0, 8)}, "200,000 axes"),
        ({"inputs.0": entry([1], 0, 4)}, "4 bytes more"),
        ({"inputs.0": entry([2], 0, 8), "inputs.1": entry([2], 0, 8)}, "overlap"),
        ({"inputs.0": entry([], 0, 4), "inputs.1": entry([], 4, 8)}, "no axes"),
        ({"inputs.0": entry([0, 2], 0, 0), "targets": entry([0], 0, 0), "inputs.1": entry([2], 0, 8)}, "they differ"),
        ({"inputs.0": entry([2, 0], 0, 0), "inputs.1": entry([2], 0, 8)}, "is empty"),
    ],
)
def test_a_header_that_lies_is_refused(header: Any, why: str, tmp_path: Path) -> None:
    refuse(craft(tmp_path / "s", header, bytes(8)), why)


def test_a_header_of_megabytes_is_not_read(tmp_path: Path) -> None:
    craft(tmp_path / "s", b'{"__metadata__": [' + b"[]," * 10**7 + b"0]}")
    tracemalloc.start()
    refuse(tmp_path / "s", "more than")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    refuse(tmp_path / "s", "no safetensors file")


def test_first_axes_must_be_equal(tmp_path: Path) -> None:
    error = refuse(write(tmp_path / "s", inputs_0=torch.ones(4, 2), targets=torch.ones(3)), "inputs.0 4.*targets 3|targets 3.*inputs.0 4")
    assert error.facts["counts"] == {"inputs.0": 4, "targets": 3}
