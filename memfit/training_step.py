"""One training step as planned: the plan's loss and optimizer, inside its budget."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.fx import GraphModule

from memfit.losses import loss_of
from memfit.micro_batches import parts
from memfit.process_memory import hand_back, keep_freed_memory, resident_bytes, return_freed_memory, within
from memfit.program import call_with, in_order
from memfit.recipe import Recipe
from memfit.row_updates import update_rows
from memfit.splitting import RandomState, Segment, Segments, backward_from, joined, slices


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


FIRST_STEPS = 2  # after which libraries are loaded and the optimizer's state is there


class TrainingStep:
    """Runs training steps of a model from `memfit.load`.

    Making one lets the process return freed memory (`memfit.return_freed_memory`), or its peak would not be the step's. From the third
    step on freed memory is kept for the next tensors, as far as the budget allows, which is faster.

    Args:
        model: its plan names loss, optimizer, trained parameters, and how a batch goes through.
        lr: learning rate.

    Attributes:
        optimizer: the `torch.optim` optimizer, for schedules and saving.
    """

    def __init__(self, model: nn.Module, lr: float) -> None:
        recipe = getattr(model, "recipe", None)
        if not isinstance(recipe, Recipe) or not isinstance(model, GraphModule):
            raise ValueError("TrainingStep needs a model from memfit.load: any other has no plan")
        return_freed_memory()
        self._most_bytes: int | None = None  # of the process, once it is known what it holds between steps
        self._memory_bytes, self._steps = recipe.memory_bytes, 0
        self.model = model
        self.loss = recipe.loss
        self.micro_batch, self.slice = recipe.micro_batch, recipe.slice
        self.segments = Segments(model, recipe.splits) if recipe.splits else None
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self._trained, recipe.optimizer, lr)
        self._complete = False  # whether the gradients that come now are those of the whole batch, and are to be applied
        if recipe.early_updates:
            for parameter in self._trained:
                parameter.register_post_accumulate_grad_hook(self._early_update)

    def __call__(self, inputs: Inputs, targets: Tensor | None = None) -> float:
        """One step on one batch; the mean loss.

        Args:
            inputs: the model's input, a tuple of them, or a dict by name.
            targets: what the loss compares with; None if the model returns its own loss.
        """
        with within(self._most_bytes):
            loss = self._backward(inputs, targets, apply=True)
            self._update()
        self._steps += 1
        if self._steps == FIRST_STEPS and self._memory_bytes:
            self._keep_freed_memory(inputs, targets)
        return loss

    def _keep_freed_memory(self, inputs: Inputs, targets: Tensor | None) -> None:
        """Keep what steps free, up to what the budget leaves beside what is there between them."""
        states = (value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
        there = [*self.model.parameters(), *self.model.buffers(), *states, *in_order(self.model, inputs)]
        there += [] if targets is None else [targets]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in there}
        if keep_freed_memory():
            hand_back()
            self._most_bytes = resident_bytes() + self._memory_bytes - sum(storages.values())

    def backward(self, inputs: Inputs, targets: Tensor | None = None) -> float:
        """Add the gradient of one batch to the parameters' `grad`, and update nothing; the mean loss.

        For who wants to look at gradients or change them. All of them live at the end: more than the plan counts with, where that
        has early updates.
        """
        loss = self._backward(inputs, targets, apply=False)
        for parameter in self._trained:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        return loss

    def _backward(self, inputs: Inputs, targets: Tensor | None, apply: bool) -> float:
        total = 0.0
        waiting = list(parts(inputs, targets, self.loss, self.micro_batch))
        for number, (some_inputs, some_targets, weight) in enumerate(waiting, start=1):
            last = apply and number == len(waiting)
            if self.segments is None:
                self._complete = last
                loss = self._loss(self._outputs(some_inputs), some_targets, weight)
                loss.backward()
            else:
                loss = self._divided(self.segments, in_order(self.model, some_inputs), some_targets, weight, last)
            total += float(loss.detach())
        self._complete = False
        return total

    def _divided(self, segments: Segments, inputs: list[Tensor], targets: Tensor | None, weight: float, last: bool) -> Tensor:
        """Gradients of one part: up to the last split without autograd, after it at once, then the segments before it again."""
        boundaries, random = list[Tensor | None](), list[RandomState | None]()  # what each segment returns, and drew its numbers with
        boundary: Tensor | None = None  # the one that was made last
        for segment in segments.divided:
            random.append(RandomState.now() if segment.draws and segment.trains else None)
            with torch.no_grad():
                some = self._slices(boundary, inputs)
                boundary = joined((self._run(segment.ahead, tensors, sliced=True)[0] for tensors in some), inputs[0].shape[0])
            del some
            if boundaries and not segment.trains:
                boundaries[-1] = None  # nobody will ask for it again
            boundaries.append(boundary.requires_grad_(segment.trains))
        self._complete = last
        boundary = boundaries.pop()
        assert boundary is not None
        loss = self._loss(segments.outputs(self._run(segments.last, (boundary, *inputs))), targets, weight)
        loss.backward()
        gradient, loss = [boundary.grad] if boundary.grad is not None else [], loss.detach()  # the graph would hold the boundary
        del boundary
        for segment, state in zip(reversed(segments.divided), reversed(random), strict=True):
            if not gradient:
                break
            with state.again() if state is not None else nullcontext():  # what was dropped the first time is dropped again
                gradient = self._again(segment, boundaries.pop() if boundaries else None, inputs, gradient, last)
        return loss

    def _again(self, segment: Segment, boundary: Tensor | None, inputs: list[Tensor], gradient: list[Tensor], last: bool) -> list[Tensor]:
        """Run a segment once more, slice by slice, and its backward; the gradient of the value before it, if that needs one.

        Args:
            boundary: the value before it; where slices are less than all, their gradients are written over it.
            gradient: of the segment's own value. It is taken out, or it would live as long as whoever passes it.
        """
        some, some_gradients = self._slices(boundary, inputs), list(gradient.pop().split(self.slice))
        passes = boundary is not None and boundary.requires_grad
        result = list[Tensor]()
        for number, tensors in enumerate(some, start=1):
            self._complete = last and number == len(some)
            if boundary is not None:
                tensors = (tensors[0].detach().requires_grad_(passes), *tensors[1:])
            edge = get_gradient_edge(self._run(segment.again, tensors)[0])  # the value itself is not needed any more
            backward_from(edge, [some_gradients.pop(0)])
            if passes:
                assert boundary is not None and tensors[0].grad is not None
                if len(some) > 1:
                    tensors[0].detach().copy_(tensors[0].grad)
                result = [boundary.detach() if len(some) > 1 else tensors[0].grad]
        return result

    def _slices(self, boundary: Tensor | None, inputs: list[Tensor]) -> list[tuple[Tensor, ...]]:
        with torch.no_grad():
            return slices(inputs if boundary is None else (boundary, *inputs), self.slice)

    def _loss(self, outputs: Any, targets: Tensor | None, weight: float) -> Tensor:
        loss = loss_of(self.loss, outputs, targets)
        return loss if weight == 1 else loss * weight

    def _outputs(self, inputs: Inputs) -> Any:
        return call_with(self.model, inputs)

    def _run(self, half: GraphModule, tensors: tuple[Tensor, ...], sliced: bool = False) -> Any:
        return half(*tensors)

    def _early_update(self, parameter: nn.Parameter) -> None:
        if not self._complete:
            return
        if parameter.grad is not None and parameter.grad.is_sparse:
            return update_rows(self.optimizer, parameter)
        every = [group["params"] for group in self.optimizer.param_groups]
        for group, parameters in zip(self.optimizer.param_groups, every, strict=True):  # gradients of others may still grow
            group["params"] = [each for each in parameters if each is parameter]
        self.optimizer.step()
        parameter.grad = None
        for group, parameters in zip(self.optimizer.param_groups, every, strict=True):
            group["params"] = parameters

    def _update(self) -> None:
        for parameter in self._trained:
            if parameter.grad is not None and parameter.grad.is_sparse:
                self._update_rows(parameter)
        self._update_others()

    def _update_rows(self, parameter: nn.Parameter) -> None:
        update_rows(self.optimizer, parameter)

    def _update_others(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
