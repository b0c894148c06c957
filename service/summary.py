"""What the service knows of an uploaded file without opening it again: no torch is needed to read these.

Shapes are tuples; an axis of `None` may have any size. Dtypes are torch's names without the prefix (`float32`).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelInput:
    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class ModelParameter:
    name: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What a program takes, gives and holds.

    Attributes:
        outputs: names that a loss `output:NAME` may use.
        operations: how often each kind of operation occurs.
    """

    inputs: tuple[ModelInput, ...]
    outputs: tuple[str, ...]
    parameters: tuple[ModelParameter, ...]
    buffers_bytes: int
    operations: dict[str, int]


@dataclass(frozen=True, slots=True)
class SampleTensor:
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class SampleSummary:
    """The tensors of a sample, in the order of the file. `count`: their common first axis."""

    count: int
    tensors: tuple[SampleTensor, ...]
