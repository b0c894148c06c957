"""Embeddings whose gradient is the rows that the batch read, with their numbers, instead of a table that is zero everywhere else."""

from typing import Any

import torch
from torch import Tensor

from memfit.process_memory import make_room


# N = numbers there are, D = width.
class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_ND: Tensor, numbers: Tensor, padding: int) -> Tensor:
        ctx.shape, ctx.padding = weight_ND.shape, padding
        ctx.save_for_backward(numbers)
        make_room(numbers.numel() * weight_ND.shape[1] * weight_ND.element_size())
        return torch.nn.functional.embedding(numbers, weight_ND)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (numbers,) = ctx.saved_tensors
        numbers, rows = numbers.reshape(-1).long(), grad.reshape(-1, grad.shape[-1])
        if bool((numbers == ctx.padding).any()):  # has no gradient
            make_room(rows.nbytes)
            counted = numbers != ctx.padding
            numbers, rows = numbers[counted], rows[counted]
        return torch.sparse_coo_tensor(numbers[None], rows, ctx.shape, check_invariants=False), None, None


def embedding(weight: Tensor, numbers: Tensor, padding: int = -1) -> Tensor:
    """Rows of `weight` (N, D) by their numbers (B, ...); the gradient of `weight` is a sparse tensor, whose rows are not added up yet.

    Args:
        padding: the number whose row has no gradient; -1: none.
    """
    return _Embedding.apply(weight, numbers, padding)  # type: ignore[no-any-return,no-untyped-call]
