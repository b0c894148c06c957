"""Weights and constants: raw bytes of dense tensors, each as large as what it claims to be."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from service.intake.archive import Archive
from service.intake.refusal import damaged, refusal
from service.intake.schema import Device, Path

MAX_TENSORS = 100_000
MAX_AXES = 32
# torch's numbers of dtypes: bytes an element, and numpy's name where its values can be looked at
DTYPES: dict[int, tuple[int, str | None]] = {
    6: (2, "float16"),
    7: (4, "float32"),
    8: (8, "float64"),
    10: (8, "complex64"),
    11: (16, "complex128"),
    **dict.fromkeys((1, 2, 12, 29, 30, 31, 32, 33), (1, None)),  # bytes, truth values, eight-bit floats
    **dict.fromkeys((3, 13, 28), (2, None)),
    **dict.fromkeys((4, 9, 34), (4, None)),
    **dict.fromkeys((5, 35), (8, None)),
}
BFLOAT16 = 13


class Number(TypedDict):
    as_int: Annotated[int, Field(strict=True, ge=0, lt=2**48)]


class Meta(TypedDict):
    dtype: Annotated[int, Field(strict=True, ge=1, le=35)]
    sizes: Annotated[list[Number], Field(max_length=MAX_AXES)]
    requires_grad: Annotated[bool, Field(strict=True)]
    device: Device
    strides: Annotated[list[Number], Field(max_length=MAX_AXES)]
    storage_offset: Number
    layout: Literal[7]


class Payload(TypedDict):
    path_name: Annotated[str, StringConstraints(pattern=r"^(weight|tensor)_[0-9]{1,6}$")]
    is_param: Annotated[bool, Field(strict=True)]
    use_pickle: Literal[False]
    tensor_meta: Meta


class Config(TypedDict):
    config: Annotated[dict[Path, Payload], Field(max_length=MAX_TENSORS)]


CONFIG: TypeAdapter[Config] = TypeAdapter(Config)


@dataclass(frozen=True, slots=True)
class Payloads:
    """The tensors of one kind, `weights` or `constants`, and the members that hold their bytes."""

    config: Config
    members: tuple[str, ...]

    @property
    def config_json(self) -> bytes:
        return CONFIG.dump_json(self.config)


def read_payloads(archive: Archive, kind: Literal["weights", "constants"]) -> Payloads:
    """The tensors of a kind, without their bytes.

    Raises:
        BadModel: one is a pickle or an object, or its bytes are not those of its shape.
    """
    folder = f"data/{kind}"
    config = _parsed(archive.json(f"{folder}/model_{kind}_config.json"), kind)
    dtypes: dict[str, int] = {}
    for name, payload in config["config"].items():
        member = f"{folder}/{payload['path_name']}"
        meta = payload["tensor_meta"]
        if dtypes.setdefault(member, meta["dtype"]) != meta["dtype"]:
            raise refusal(f"{kind[:-1]} {name!r} shares its bytes with one of another dtype", tensor=name)
        _check_extent(name, meta, archive.size(member))
    return Payloads(config, tuple(dtypes))


def finite(payloads: Payloads, member: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The bytes of a member as they come, none of a parameter being NaN or infinite. A buffer may be: masks are.

    Raises:
        BadModel: which parameter is not.
    """
    path = member.rpartition("/")[2]
    held = [(name, payload) for name, payload in payloads.config["config"].items() if payload["path_name"] == path and payload["is_param"]]
    for chunk in chunks:
        if held and not _all_finite(chunk, held[0][1]["tensor_meta"]["dtype"]):
            raise refusal(f"parameter {held[0][0]!r} holds NaN or infinity; no gradient comes from that", tensor=held[0][0])
        yield chunk


def _parsed(document: bytes, kind: str) -> Config:
    try:
        return CONFIG.validate_json(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        name = str(found["loc"][1])[:200] if len(found["loc"]) > 1 else ""
        if found["loc"][-1:] == ("use_pickle",) or found["loc"][-1:] == ("path_name",) or found["loc"][-1:] == ("tensor_meta",):
            raise refusal(
                f"{kind[:-1]} {name!r} is stored as a pickle or an object, which would run code when opened. Make it a plain, dense tensor",
                tensor=name,
            ) from error
        where = ".".join(str(part) for part in found["loc"])[-200:]
        raise refusal(f"the list of {kind} is not one torch writes, at {where!r}: {found['msg'][:200]}", where=where) from error


def _check_extent(name: str, meta: Meta, member_bytes: int) -> None:
    sizes, strides = ([number["as_int"] for number in meta[axes]] for axes in ("sizes", "strides"))
    if meta["dtype"] not in DTYPES:
        raise refusal(f"tensor {name!r} has a dtype that is not known ({meta['dtype']})", tensor=name)
    itemsize, _ = DTYPES[meta["dtype"]]
    if len(sizes) != len(strides):
        raise damaged(f"tensor {name!r} has {len(sizes)} sizes and {len(strides)} strides", tensor=name)
    elements = prod(sizes)
    reach = meta["storage_offset"]["as_int"] + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
    needed = max(elements, reach if elements else 0) * itemsize
    if needed > member_bytes or member_bytes % itemsize:
        raise refusal(
            f"tensor {name!r} claims {needed:,} bytes, of which the file has {member_bytes:,}. "
            "An expanded tensor must be made whole with .contiguous() before exporting",
            tensor=name,
            claimed_bytes=needed,
            stored_bytes=member_bytes,
        )


def _all_finite(chunk: bytes, dtype: int) -> bool:
    if dtype == BFLOAT16:
        bits = np.frombuffer(chunk, np.uint16)
        return not bool(((bits & 0x7F80) == 0x7F80).any())
    kind: Any = DTYPES[dtype][1]
    return kind is None or bool(np.isfinite(np.frombuffer(chunk, kind)).all())
