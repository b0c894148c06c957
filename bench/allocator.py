"""The peak of a training step, read from the allocator's own record: every allocation and release, workspace included."""

from collections.abc import Callable, Iterable
from itertools import accumulate

from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

MEASURED_STEP = "measured step"


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of the storages behind `tensors`, each storage once, by where they are."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def step_peak_bytes(step: Callable[[], object], static: Callable[[], Iterable[Tensor]] = tuple) -> int:
    """Most bytes live at any moment of a training step.

    `step` runs twice: the first time it makes what later steps find (optimizer state), the second is measured. The record starts
    before the first, so what that one leaves behind is counted, and whatever the second releases is known.

    Args:
        step: one whole training step: forward, loss, backward, update. It must not have run before.
        static: what is there already: parameters, buffers and the batch. Asked again after the first step, since what that one
            replaced (the record shows no release of older tensors) is gone when the second begins.
    """
    before = storages(static())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
        after = storages(static())
        with record_function(MEASURED_STEP):
            step()
    static_bytes = sum(nbytes for where, nbytes in before.items() if where in after)
    record = profiler.profiler
    assert record is not None
    events = sorted(record.kineto_results.events(), key=lambda event: event.start_ns())
    start = next(event.start_ns() for event in events if event.name() == MEASURED_STEP)
    changes = [event for event in events if event.name() == "[memory]"]
    live = zip(changes, accumulate(change.nbytes() for change in changes), strict=True)
    allocated_bytes: int = max(total for change, total in live if change.start_ns() >= start)
    return static_bytes + allocated_bytes
