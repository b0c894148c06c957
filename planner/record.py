"""The allocator's own record of a training step: bytes live at every moment, workspace included.

`torch.profiler` reports each allocation and release of the CPU allocator in order. Forward moments are named ranges around
operations; a backward event belongs to the operation whose forward made its sequence number.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from planner.profile import Moment

FORWARD = "memfit.forward:"
SLICED = "memfit.sliced:"
COMPRESS = "memfit.compress:"
MEASURED = "memfit.measured"
UPDATE = "memfit.update:"


@dataclass(slots=True)
class Recording:
    """Bytes allocated above those that were live when recording began.

    Attributes:
        start_bytes: what steps before the measured one left behind.
        peak_bytes: the highest sum at any time.
        peaks: the highest sum in each moment, in order of first appearance.
        ends: the sum at the end of each moment.
        seconds: of each moment; longer than without a record.
    """

    start_bytes: int = 0
    peak_bytes: int = 0
    peaks: dict[Moment, int] = field(default_factory=dict)
    ends: dict[Moment, int] = field(default_factory=dict)
    seconds: dict[Moment, float] = field(default_factory=dict)


def forward_range(operation: str) -> record_function:
    """A context in which an operation's forward runs, so that its moment is known by name."""
    return record_function(FORWARD + operation)


def sliced_range(operation: str) -> record_function:
    """A context in which an operation before the last split runs without autograd."""
    return record_function(SLICED + operation)


def compress_range(operation: str) -> record_function:
    """A context in which the form of an operation's input is made."""
    return record_function(COMPRESS + operation)


def update_range(of: str = "optimizer") -> record_function:
    """A context for the optimizer's step, of all parameters or of the one named."""
    return record_function(UPDATE + of)


def record(step: Callable[[], object], before: Callable[[], object] | None = None) -> Recording:
    """Run `step` under the allocator's record; `before` under it too, of which only what it leaves behind counts."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        if before is not None:
            before()
        with record_function(MEASURED):
            step()
    kineto = profiler.profiler
    assert kineto is not None
    recording, made_by, live, moment = Recording(), dict[int, str](), 0, None
    for event in _in_order(kineto.kineto_results.experimental_event_tree(), made_by):
        if event is None:
            recording, moment = Recording(start_bytes=live, peak_bytes=live), None
            continue
        if isinstance(event, _Began):
            moment = event.moment
            recording.seconds[moment] = recording.seconds.get(moment, 0.0) + event.seconds
        else:
            live += event
            recording.peak_bytes = max(recording.peak_bytes, live)
        if moment is not None:
            recording.peaks[moment] = max(recording.peaks.get(moment, live), live)
            recording.ends[moment] = live
    return recording


@dataclass(frozen=True, slots=True)
class _Began:
    moment: Moment
    seconds: float


def _in_order(events: list[Any], made_by: dict[int, str], forward: str | None = None) -> Iterator[_Began | int | None]:
    """Moments as they begin, bytes as they are allocated (positive) and released, and None where the measured step begins, in order of
    time.
    """
    for event in sorted(events, key=lambda event: event.start_time_ns):
        kind, inside = event.tag.name, forward
        if kind == "Allocation":
            yield int(event.extra_fields.alloc_size)
        elif kind == "TorchOp":
            number, seconds = event.extra_fields.sequence_number, event.duration_time_ns / 1e9
            if event.name == MEASURED:
                yield None
            elif event.name.startswith(FORWARD):
                inside = event.name.removeprefix(FORWARD)
                yield _Began(Moment("forward", inside), seconds)
            elif event.name.startswith(SLICED):
                yield _Began(Moment("sliced", event.name.removeprefix(SLICED)), seconds)
            elif event.name.startswith(COMPRESS):
                yield _Began(Moment("compress", event.name.removeprefix(COMPRESS)), seconds)
            elif event.name.startswith(UPDATE):
                yield _Began(Moment("update", event.name.removeprefix(UPDATE)), seconds)
            elif forward is not None and number >= 0:
                # An operation shows the number that the next node will get, so the last to show one made that node.
                made_by[number] = forward
            elif event.name.startswith("autograd::engine::evaluate_function") and number in made_by:
                yield _Began(Moment("backward", made_by[number]), seconds)
        yield from _in_order(event.children, made_by, inside)
