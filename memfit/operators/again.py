"""Operations that hold nothing but their inputs, each whole or in a form, and work themselves out again for their gradient.

So layer norm does without its statistics and attention without its output, and an activation function may have its input worked out
again or restored. A backward takes some samples at a time: it runs the operation under autograd and lets that differentiate it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from memfit.operators.held import HeldTensor, Restorable, samples_at_once
from memfit.overwriting import IN_PLACE
from memfit.process_memory import make_room

aten = torch.ops.aten

# Operations that treat samples apart, with the arguments that are activations; not those that change their input in place.
REPEATED: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys((aten.gelu.default, aten.silu.default, aten.mish.default, aten.elu.default), ("self",)),
    **dict.fromkeys((aten.hardswish.default, aten.hardsigmoid.default, aten.softplus.default), ("self",)),
    **dict.fromkeys((aten.sigmoid.default, aten.tanh.default, aten.softmax.int), ("self",)),
    **dict.fromkeys((aten.layer_norm.default, aten.rms_norm.default, aten.group_norm.default), ("input",)),
    aten.scaled_dot_product_attention.default: ("query", "key", "value"),
}
MASK = "attn_mask"  # the one further tensor that may go by samples


class _Again(torch.autograd.Function):
    """`tensors`: those of the operation, then what their forms restore them from, one after the other."""

    @staticmethod
    def forward(
        ctx: Any,
        operation: "Again",
        over_input: bool,
        forms: tuple[Restorable | None, ...],
        counts: tuple[int, ...],
        *tensors: Tensor | None,
    ) -> Tensor:
        own = tensors[: len(forms)]
        make_room(2 * sum(tensor.nbytes for tensor in own if tensor is not None))
        if over_input:
            ctx.mark_dirty(own[0])
        result = operation.run(own, over_input)
        ctx.operation, ctx.forms, ctx.counts = operation, forms, counts
        ctx.shapes = [None if tensor is None else tensor.shape for tensor in own]
        ctx.by_samples = [operation.goes_by_samples(at, own) for at in range(len(own))]
        ctx.widest = operation.widest(own, result)
        whole = (None if form is not None else tensor for form, tensor in zip(forms, own, strict=True))
        ctx.save_for_backward(*whole, *tensors[len(own) :])
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, own = ctx.saved_tensors, len(ctx.forms)
        make_room(4 * grad.nbytes)
        wanted = ctx.needs_input_grad[4 : 4 + own]
        grads: list[Tensor | None] = [None] * own
        step = samples_at_once(ctx.widest, grad.element_size())
        for start in range(0, grad.shape[0], step):
            some = slice(start, min(start + step, grad.shape[0]))
            parts = ctx.operation.gradients(list(_inputs(ctx, saved, some)), wanted, grad[some])
            for at, part in enumerate(parts):
                if part is None or step >= grad.shape[0]:
                    grads[at] = part
                elif ctx.by_samples[at]:
                    if start == 0:
                        grads[at] = part.new_empty(ctx.shapes[at])
                    grads[at][some] = part  # type: ignore[index]
                else:
                    grads[at] = part if start == 0 else grads[at].add_(part)  # type: ignore[union-attr]
            del parts
        return (None, None, None, None, *grads, *(None for _ in ctx.needs_input_grad[4 + own :]))


def _inputs(ctx: Any, saved: tuple[Tensor | None, ...], some: slice) -> Iterator[Tensor | None]:
    """The operation's tensors for some samples."""
    own = len(ctx.forms)
    further = own
    for at, form in enumerate(ctx.forms):
        if form is not None:
            held = saved[further : further + ctx.counts[at]]
            further += ctx.counts[at]
            yield form.restore(held, ctx.shapes[at], some.start, some.stop)
        else:
            whole = saved[at]
            yield whole[some] if whole is not None and ctx.by_samples[at] else whole


class Again(nn.Module):
    """One operation of a program that holds its inputs alone.

    Args:
        target: the operation.
        tensors: names of its arguments that are tensors, in the order in which they and what is held of them come; the first
            `samples` of them are activations.
        constants: its other arguments, by name.
    """

    def __init__(self, target: Any, tensors: tuple[str, ...], samples: int, constants: dict[str, Any]) -> None:
        super().__init__()
        self.target, self.tensors, self.samples, self.constants = target, tensors, samples, constants

    def forward(self, *values: Any, over_input: bool = False) -> Tensor:
        """The operation's tensors, then for each activation among them what holds it, or None: it holds it whole.

        With `over_input`, an activation function writes its result over its input, which then cannot be held whole.

        Raises:
            ValueError: it would be.
        """
        own, held = values[: len(self.tensors)], values[len(self.tensors) :]
        each: list[HeldTensor | None] = [*held, *(None for _ in own[len(held) :])]
        if over_input and each[0] is None and own[0].requires_grad and torch.is_grad_enabled():
            raise ValueError("an operation cannot hold whole what it writes its result over")
        forms = tuple(None if one is None else one.form for one in each)
        counts = tuple(0 if one is None else len(one.tensors) for one in each)
        further = (tensor for one in each if one is not None for tensor in one.tensors)
        return _Again.apply(self, over_input, forms, counts, *own, *further)  # type: ignore[no-any-return,no-untyped-call]

    def run(self, tensors: tuple[Tensor | None, ...] | list[Tensor | None], over_input: bool = False) -> Tensor:
        target = IN_PLACE[self.target] if over_input else self.target
        return target(**self.constants, **dict(zip(self.tensors, tensors, strict=True)))  # type: ignore[no-any-return]

    def widest(self, own: tuple[Tensor | None, ...], result: Tensor) -> tuple[int, ...]:
        """Shape of the largest tensor that working it out makes."""
        return tuple(result.shape)

    def goes_by_samples(self, at: int, own: tuple[Tensor | None, ...]) -> bool:
        first, tensor = own[0], own[at]
        if tensor is None or first is None:
            return False
        return at < self.samples or (self.tensors[at] == MASK and tensor.dim() == first.dim() and tensor.shape[0] == first.shape[0])

    def gradients(self, inputs: list[Tensor | None], wanted: tuple[bool, ...], grad: Tensor) -> list[Tensor | None]:
        """Of the inputs that are wanted."""
        with torch.enable_grad():
            leaves = [None if x is None else x.detach().requires_grad_(want) for x, want in zip(inputs, wanted, strict=True)]
            inputs.clear()
            found = iter(torch.autograd.grad(self.run(leaves), [x for x in leaves if x is not None and x.requires_grad], grad))
        return [next(found) if want else None for want in wanted]
