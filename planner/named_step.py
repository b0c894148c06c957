"""Training steps whose every operation runs in a named range, so that the allocator's record tells of each moment."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule

from memfit.losses import loss_of
from memfit.training_step import Inputs, TrainingStep
from planner.capture import NamedRun
from planner.record import forward_range, update_range
from planner.sample import Batch
from planner.structure import LOSS


class NamedTrainingStep(TrainingStep):
    """The planned step, its operations run one by one. Its inputs are a tuple."""

    def _loss(self, inputs: Inputs, targets: Tensor | None) -> Tensor:
        assert isinstance(inputs, tuple) and isinstance(self.model, GraphModule)
        return named_loss(self.model, self.loss, Batch(inputs, targets))

    def _update(self) -> None:
        with update_range():
            super()._update()


def named_step(module: GraphModule, optimizer: torch.optim.Optimizer, loss: str, batch: Batch) -> Callable[[], None]:
    """Forward, loss, backward and update on one batch; gradients are let go at the end."""

    def step() -> None:
        named_loss(module, loss, batch).backward()
        with update_range():
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def named_loss(module: GraphModule, loss: str, batch: Batch) -> Tensor:
    """The loss of a batch."""
    # The outputs end with this frame, as in `memfit.TrainingStep`.
    outputs = NamedRun(module).run(*batch.inputs)
    with forward_range(LOSS):
        return loss_of(loss, outputs, batch.targets)
