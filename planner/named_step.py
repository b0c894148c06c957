"""Training steps whose every operation runs in a named range, so that the allocator's record tells of each moment."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from memfit.losses import loss_of
from memfit.program import in_order
from memfit.training_step import Inputs, TrainingStep
from planner.capture import NamedRun
from planner.record import forward_range, update_range
from planner.sample import Batch
from planner.structure import LOSS


class NamedTrainingStep(TrainingStep):
    """The planned step, its operations run one by one."""

    def _outputs(self, inputs: Inputs) -> Any:
        return self._run(self.model, tuple(in_order(self.model, inputs)))

    def _run(self, half: GraphModule, tensors: tuple[Tensor, ...], sliced: bool = False) -> Any:
        return NamedRun(half, sliced=sliced).run(*tensors)

    def _loss(self, outputs: Any, targets: Tensor | None, weight: float) -> Tensor:
        with forward_range(LOSS):
            return super()._loss(outputs, targets, weight)

    def _early_update(self, parameter: nn.Parameter) -> None:
        if self._complete:
            with update_range(self._name(parameter)):
                super()._early_update(parameter)

    def _update_rows(self, parameter: nn.Parameter) -> None:
        with update_range(self._name(parameter)):
            super()._update_rows(parameter)

    def _update_others(self) -> None:
        with update_range():
            super()._update_others()

    def _name(self, parameter: nn.Parameter) -> str:
        return next(name for name, each in self.model.named_parameters() if each is parameter)


def named_step(module: GraphModule, optimizer: torch.optim.Optimizer, loss: str, batch: Batch) -> Callable[[], None]:
    """Forward, loss, backward and update on one batch; gradients are let go at the end."""

    def forward() -> Tensor:
        # The outputs end with this frame, as in `memfit.TrainingStep`.
        outputs = NamedRun(module).run(*batch.inputs)
        with forward_range(LOSS):
            return loss_of(loss, outputs, batch.targets)

    def step() -> None:
        forward().backward()
        with update_range():
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
