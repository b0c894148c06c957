"""A training step whose every operation runs in a named range, so that the allocator's record tells of each moment."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule

from memfit.losses import loss_of
from planner.capture import NamedRun
from planner.record import forward_range, update_range
from planner.sample import Batch
from planner.structure import LOSS


def named_step(module: GraphModule, optimizer: torch.optim.Optimizer, loss: str, batch: Batch) -> Callable[[], None]:
    """Forward, loss, backward and update on one batch; gradients are let go at the end."""
    run = NamedRun(module)

    def forward() -> Tensor:
        # The outputs end with this frame, as in `memfit.TrainingStep`.
        outputs = run.run(*batch.inputs)
        with forward_range(LOSS):
            return loss_of(loss, outputs, batch.targets)

    def step() -> None:
        forward().backward()
        with update_range():
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
