"""Reads a sample, a safetensors file, without torch: its header, and every value in chunks.

The format: 8 bytes that give the length of a JSON header, the header (for each tensor its dtype, shape and place), the data.
"""

import json
import re
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import BadSample
from service.summary import SampleSummary, SampleTensor

REMEDY = (
    'Write it with safetensors.torch.save_file({"inputs.0": images, "targets": labels}, "sample.safetensors"): '
    "inputs.0, inputs.1, … (or inputs.NAME) and targets, the first axis of each being the samples."
)
NAME = re.compile(r"inputs\.(\d+|[A-Za-z_]\w*)|targets")
MAX_HEADER_BYTES = 2**20  # that of a thousand tensors takes a tenth of it
MAX_AXES = 32
CHUNK_VALUES = 2**20
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


def read_sample(path: Path) -> SampleSummary:
    """The tensors of a sample, all of it checked.

    Raises:
        BadSample: no complete safetensors file, a name or dtype that no sample has, first axes that differ, NaN or infinity.
    """
    size = path.stat().st_size
    header, data_start = _read_header(path, size)
    tensors, places = [], []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensor, place = _read_entry(name, entry, size - data_start)
        tensors.append(tensor)
        places.append(place)
    if not any(tensor.name.startswith("inputs.") for tensor in tensors):
        raise BadSample(f"the sample has no inputs: its tensors are {_named(header)}. {REMEDY}", tensors=sorted(header))
    _check_layout(places, size - data_start)
    count = _common_count(tensors)
    with path.open("rb") as file:
        for tensor, (start, stop) in zip(tensors, places, strict=True):
            _check_finite(tensor, file, data_start + start, stop - start)
    return SampleSummary(count, tuple(tensors))


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise BadSample(
                f"the sample is no safetensors file, cut short, or has a header of more than {MAX_HEADER_BYTES:,} bytes. {REMEDY}"
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise BadSample(f"the sample is no safetensors file: its header is not JSON. {REMEDY}")
    return header, 8 + length


def _read_entry(name: str, entry: Any, data_bytes: int) -> tuple[SampleTensor, tuple[int, int]]:
    if not NAME.fullmatch(name):
        raise BadSample(f"the sample holds a tensor {name!r}, which is neither an input nor the targets. {REMEDY}", tensor=name)
    try:
        dtype, shape, (start, stop) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
    except (KeyError, TypeError, ValueError):
        raise BadSample(f"the sample's header is damaged at tensor {name!r}. {REMEDY}", tensor=name) from None
    if len(shape) > MAX_AXES:  # before their product, which would take long to compute
        raise BadSample(f"tensor {name!r} has {len(shape):,} axes; a sample's have at most {MAX_AXES}. {REMEDY}", tensor=name)
    if dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise BadSample(f"tensor {name!r} has the dtype {dtype}; a sample may hold {known}. Convert it.", tensor=name, dtype=dtype)
    torch_name, itemsize = DTYPES[dtype]
    if not whole or stop - start != prod(shape) * itemsize or stop > data_bytes:
        raise BadSample(f"the sample is cut short or damaged at tensor {name!r}. Write it again, or send it again.", tensor=name)
    return SampleTensor(name, shape, torch_name), (start, stop)


def _check_layout(places: list[tuple[int, int]], data_bytes: int) -> None:
    """The tensors fill the data without gaps or overlaps, as the format wants."""
    end = 0
    for start, stop in sorted(places):
        if start != end:
            raise BadSample(f"the sample's tensors overlap or leave gaps. {REMEDY}")
        end = stop
    if end != data_bytes:
        raise BadSample(f"the sample has {data_bytes - end:,} bytes more than its tensors. {REMEDY}")


def _common_count(tensors: list[SampleTensor]) -> int:
    for tensor in tensors:
        if not tensor.shape:
            raise BadSample(f"tensor {tensor.name!r} has no axes; the first axis of every tensor must be the samples.", tensor=tensor.name)
    counts = {tensor.name: tensor.shape[0] for tensor in tensors}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise BadSample(f"the first axis of every tensor must be the samples, but they differ: {found}.", counts=counts)
    if 0 in counts.values() or any(0 in tensor.shape for tensor in tensors):
        raise BadSample("the sample is empty: an axis has the size 0. Give at least one batch of data.", counts=counts)
    return counts[tensors[0].name]


def _check_finite(tensor: SampleTensor, file: IO[bytes], offset: int, length: int) -> None:
    """Refuse NaN and infinity: no gradient can be compared with them."""
    if "float" not in tensor.dtype:
        return
    kind: Any = np.uint16 if tensor.dtype == "bfloat16" else tensor.dtype  # numpy has no bfloat16: its bits are read instead
    itemsize = np.dtype(kind).itemsize
    file.seek(offset)
    for start in range(0, length // itemsize, CHUNK_VALUES):
        values = np.frombuffer(file.read(min(CHUNK_VALUES, length // itemsize - start) * itemsize), kind)
        bad = _not_finite(values, tensor.dtype)
        if bad.any():
            first = int(bad.argmax())
            index = [int(number) for number in np.unravel_index(start + first, tensor.shape)]
            value = _name_of(values[first], tensor.dtype)
            raise BadSample(
                f"tensor {tensor.name!r} holds {value} at index {index}; no gradient comes from that. Leave out or repair that sample.",
                tensor=tensor.name,
                index=index,
                value=value,
            )


def _not_finite(values: NDArray[Any], dtype: str) -> NDArray[np.bool_]:
    if dtype == "bfloat16":
        exponent: NDArray[np.bool_] = (values & 0x7F80) == 0x7F80
        return exponent
    finite: NDArray[np.bool_] = np.isfinite(values)
    return ~finite


def _name_of(value: Any, dtype: str) -> str:
    not_a_number = bool(value & 0x7F) if dtype == "bfloat16" else bool(np.isnan(value))
    return "NaN" if not_a_number else "infinity"


def _named(header: dict[str, Any]) -> str:
    names = sorted(name for name in header if name != "__metadata__")
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "") if names else "none"
