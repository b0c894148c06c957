"""The update of a parameter whose gradient is some of its rows, a range of rows after the other.

Optimizers such as momentum and Adam change every row in every step, also those without a gradient. In ranges, neither the whole gradient
nor the optimizer's temporaries of the parameter's size ever exist, and what comes out is what the dense gradient gives.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

RANGE_BYTES = 1 << 20  # of the parameter, updated at once


def rows_at_once(shape: tuple[int, ...], parameter_bytes: int) -> int:
    """Rows of a parameter (N, D) that are updated at once."""
    return max(1, min(shape[0], RANGE_BYTES * shape[0] // parameter_bytes))


def range_bytes(shape: tuple[int, ...], parameter_bytes: int) -> int:
    """Of these rows."""
    return rows_at_once(shape, parameter_bytes) * (parameter_bytes // shape[0])


def update_rows(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    """Update one parameter (N, D) of an elementwise optimizer by its `grad`, a sparse tensor of rows, which goes.

    The state is the optimizer's own, whole: schedules and `state_dict()` work as with a dense gradient.
    """
    gradient = parameter.grad
    assert gradient is not None
    numbers, rows = gradient._indices()[0], gradient._values()
    group = next(group for group in optimizer.param_groups if any(each is parameter for each in group["params"]))
    state, steps = optimizer.state[parameter], dict[str, Tensor]()
    before = {name: value.clone() for name, value in state.items() if isinstance(value, Tensor) and value.shape != parameter.shape}
    for start, stop in _ranges(parameter):
        part = nn.Parameter(parameter.detach()[start:stop])
        inside = (numbers >= start) & (numbers < stop)
        part.grad = torch.zeros_like(part).index_add_(0, numbers[inside] - start, rows[inside])
        once = type(optimizer)([{**group, "params": [part]}])  # type: ignore[call-arg]
        known = {name: value[start:stop] for name, value in state.items() if isinstance(value, Tensor) and name not in before}
        if state:
            once.state[part] = {**state, **known, **{name: value.clone() for name, value in before.items()}}
        once.step()
        for name, value in once.state[part].items():
            if isinstance(value, Tensor) and value.shape == part.shape and name not in before:
                if name not in known:  # the first step's
                    steps.setdefault(name, torch.zeros_like(parameter))[start:stop] = value
            else:
                steps[name] = value
    state.update(steps)
    parameter.grad = None


def _ranges(parameter: Tensor) -> Iterator[tuple[int, int]]:
    size = rows_at_once(parameter.shape, parameter.nbytes)
    for start in range(0, parameter.shape[0], size):
        yield start, min(start + size, parameter.shape[0])
