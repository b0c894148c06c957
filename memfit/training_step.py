"""One training step as planned: the plan's loss and optimizer, inside its budget."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from memfit.losses import loss_of
from memfit.micro_batches import parts
from memfit.process_memory import return_freed_memory
from memfit.program import call_with
from memfit.recipe import Recipe


def make_optimizer(parameters: list[nn.Parameter], optimizer: dict[str, Any], lr: float) -> torch.optim.Optimizer:
    """The optimizer a plan counts with: it works one parameter at a time, so its temporaries are one parameter's size."""
    name, momentum = optimizer["name"], optimizer.get("momentum", 0.0)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, foreach=False)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, foreach=False)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, foreach=False)
    raise ValueError(f"optimizer {name!r} is not one of sgd, adam, adamw")


Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


class TrainingStep:
    """Runs training steps of a model from `memfit.load`.

    Making one lets the process return freed memory (`memfit.return_freed_memory`), or its peak would not be the step's.

    Args:
        model: its plan names loss, optimizer and trained parameters.
        lr: learning rate.

    Attributes:
        optimizer: the `torch.optim` optimizer, for schedules and saving.
    """

    def __init__(self, model: nn.Module, lr: float) -> None:
        recipe = getattr(model, "recipe", None)
        if not isinstance(recipe, Recipe) or not isinstance(model, GraphModule):
            raise ValueError("TrainingStep needs a model from memfit.load: any other has no plan")
        return_freed_memory()
        self.model = model
        self.loss = recipe.loss
        self.micro_batch = recipe.micro_batch
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self._trained, recipe.optimizer, lr)
        self._complete = False  # whether the gradients that come now are those of the whole batch
        if recipe.early_updates:
            for parameter in self._trained:
                parameter.register_post_accumulate_grad_hook(self._early_update)

    def __call__(self, inputs: Inputs, targets: Tensor | None = None) -> float:
        """One step on one batch; the mean loss.

        Args:
            inputs: the model's input, a tuple of them, or a dict by name.
            targets: what the loss compares with; None if the model returns its own loss.
        """
        total = 0.0
        waiting = list(parts(inputs, targets, self.loss, self.micro_batch))
        for number, (some_inputs, some_targets, weight) in enumerate(waiting, start=1):
            self._complete = number == len(waiting)
            loss = self._loss(some_inputs, some_targets)
            (loss if weight == 1 else loss * weight).backward()
            total += float(loss.detach()) * weight
        self._complete = False
        self._update()
        return total

    def _early_update(self, parameter: Tensor) -> None:
        if not self._complete:
            return
        waiting = [(p, p.grad) for p in self._trained if p is not parameter and p.grad is not None]  # parts of theirs are to come
        for other, _ in waiting:
            other.grad = None
        self.optimizer.step()
        parameter.grad = None
        for other, part in waiting:
            other.grad = part

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _loss(self, inputs: Inputs, targets: Tensor | None) -> Tensor:
        # The outputs end with this frame: no activation outlives the loss but what the plan holds.
        return loss_of(self.loss, call_with(self.model, inputs), targets)
