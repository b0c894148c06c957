"""Small tensors as text, so that they can lie among a form's settings in a checkpoint's plan: no pickle, no format of its own."""

import base64
import binascii
import ctypes
from dataclasses import fields
from math import prod

import torch
from torch import Tensor

PREFIX = "tensor:"
DTYPES = {name: getattr(torch, name) for name in ("uint8", "int8", "float16", "float32")}


def encode(tensor: Tensor) -> str:
    """The tensor's type, shape and bytes (little-endian) as one word."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"tensors of type {name} are not shipped: use {', '.join(DTYPES)}")
    own = tensor.detach().cpu().contiguous()
    data = ctypes.string_at(own.data_ptr(), own.nbytes) if own.nbytes else b""
    return f"{PREFIX}{name}:{','.join(map(str, tensor.shape))}:{base64.b64encode(data).decode()}"


def decode(text: str) -> Tensor:
    """The tensor that `encode` wrote.

    Raises:
        ValueError: the text is no such tensor, or not all of one.
    """
    try:
        name, sizes, data = text.removeprefix(PREFIX).split(":")
        dtype, shape = DTYPES[name], tuple(int(size) for size in sizes.split(",") if size)
        raw = base64.b64decode(data, validate=True)
    except (ValueError, KeyError, binascii.Error) as error:
        raise ValueError(f"a tensor of the checkpoint's plan cannot be read ({error})") from None
    if any(size < 0 for size in shape) or len(raw) != prod(shape) * dtype.itemsize:
        raise ValueError(f"a tensor of the checkpoint's plan has {len(raw)} bytes, which are not those of shape {shape} in {name}")
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype).view(shape).clone()


def tensors_of(form: object) -> dict[str, Tensor]:
    """The tensors among a form's settings."""
    values = {field.name: getattr(form, field.name) for field in fields(form)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
