"""Truncated decompositions from mode Gram matrices, without unfolding.

A mode of a contiguous tensor is the middle axis of a view (L, n, R), L the product of the sizes before it and R of those
after; a run of neighbouring modes is one such axis too. Its Gram matrix (n, n) has the squared singular values of the
unfolding as eigenvalues and its left factor as eigenvectors, so no singular value decomposition of the long matrix is needed.

Sources: sequentially truncated higher-order SVD, Vannieuwenhoven, Vandebril & Meerbergen 2012; error of a truncation,
Eckart & Young 1936.
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

Decompose = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
WORKSPACE_ELEMENTS = 1 << 18  # of partial Gram matrices held at once
WORKSPACE_SHARE = 16  # and no more than the tensor has, by this


def as_mode(x: Tensor, start: int, stop: int) -> Tensor:
    """View modes start..stop-1 of contiguous `x` as the middle axis of (L, n, R)."""
    return x.view(prod(x.shape[:start]), prod(x.shape[start:stop]), prod(x.shape[stop:]))


def gram(x_LNR: Tensor) -> Tensor:
    """Gram matrix of the middle axis. Shape (n, n), float32; float64 for a float64 input, or one whose squares leave float32's range.

    Works through L in pieces: workspace beyond the result is at most WORKSPACE_ELEMENTS of partial sums, or a sixteenth of the
    tensor, plus a float32 copy of one piece for half-precision inputs, whose own products would lose all small directions.
    """
    if x_LNR.dtype != torch.float64:
        total = _gram(x_LNR, torch.float32)
        if _in_range(total) or not torch.linalg.vector_norm(x_LNR, float("inf")):  # or all zero
            return total
    return _gram(x_LNR, torch.float64)


def _in_range(gram: Tensor) -> bool:
    """Whether the squares were neither too large for float32 nor too small to tell."""
    return bool(1e-30 < gram.trace() < float("inf"))


def _gram(x_LNR: Tensor, dtype: torch.dtype) -> Tensor:
    length, size, rest = x_LNR.shape
    if rest == 1:
        rows = x_LNR.view(length, size)
        if dtype == x_LNR.dtype:
            return rows.mT @ rows
        few, total = max(1, WORKSPACE_ELEMENTS // size), torch.zeros(size, size, dtype=dtype, device=x_LNR.device)
        for at in range(0, length, few):
            part = rows[at : at + few].to(dtype)
            total.addmm_(part.mT, part)
        return total
    total = torch.zeros(size, size, dtype=dtype, device=x_LNR.device)
    pieces = max(1, min(WORKSPACE_ELEMENTS, x_LNR.numel() // WORKSPACE_SHARE) // (size * size))
    for at in range(0, length, pieces):
        piece = x_LNR[at : at + pieces].to(dtype)
        if piece.shape[0] == 1:
            total.addmm_(piece[0], piece[0].mT)
        else:
            total.add_(torch.bmm(piece, piece.mT).sum(0))
    return total


def gram_bytes(size: int, itemsize: int) -> int:
    """Most bytes live at once while a mode of this size is decomposed: the matrix, its vectors and LAPACK's work, partial sums."""
    return max(4, itemsize) * (5 * size * size + 2 * max(WORKSPACE_ELEMENTS, size * size))


def decompose_mode(x: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Squared singular values and left factor of modes start..stop-1 of contiguous `x`, taken as one mode of size n.

    Where n exceeds the product m of the other modes, the Gram matrix of those is decomposed instead, which is smaller.

    Returns:
        energies (k,), largest first and never negative, and the factor (n, k) of orthonormal columns; k = min(n, m).
    """
    x_LNR = as_mode(x, start, stop)
    length, size, rest = x_LNR.shape
    if size <= length * rest:
        gram_NN = gram(x_LNR)
        if not torch.isfinite(gram_NN.trace()):
            return _without_directions(size, gram_NN)
        energies, vectors = eigh(gram_NN)
        return energies.flip(0).clamp_min(0), vectors.flip(1)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    unfolded_NM = x_LNR.transpose(0, 1).reshape(size, length * rest).to(dtype)
    gram_MM = unfolded_NM.mT @ unfolded_NM
    if dtype == torch.float32 and not _in_range(gram_MM):
        unfolded_NM = unfolded_NM.double()
        gram_MM = unfolded_NM.mT @ unfolded_NM
    if not torch.isfinite(gram_MM.trace()):
        return _without_directions(size, gram_MM)
    energies, vectors = eigh(gram_MM)
    # The products are orthogonal but for rounding, worst in the smallest directions; QR makes them so, in their order.
    factor, _ = torch.linalg.qr(unfolded_NM @ vectors.flip(1))
    return energies.flip(0).clamp_min(0), factor


def eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a finite Gram matrix, in ascending order.

    LAPACK sometimes fails of many equal eigenvalues, such as the zeros of a tensor of few elements that are not. Then they are told apart
    by less than rounding, on the diagonal of `gram`.
    """
    try:
        energies, vectors = torch.linalg.eigh(gram)
        if vectors.isfinite().all():
            return energies, vectors
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        pass
    step = torch.finfo(gram.dtype).eps * gram.trace() / len(gram)
    gram.diagonal().add_(step * torch.arange(len(gram), dtype=gram.dtype, device=gram.device))
    energies, vectors = torch.linalg.eigh(gram)
    return energies, vectors


def _without_directions(size: int, gram: Tensor) -> tuple[Tensor, Tensor]:
    """For values that are not finite: one direction of NaN, so that the gradient tells of them as the dense one would."""
    return gram.new_zeros(1), gram.new_full((size, 1), float("nan"))


def rank_for_threshold(energies: Tensor, threshold: float) -> int:
    """Smallest rank whose leading directions keep `threshold` of the energy; at least 1.

    Args:
        energies: squared singular values of one unfolding, largest first. Shape (directions,).
        threshold: share of the energy to keep, in (0, 1].

    Raises:
        ValueError: `threshold` is outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], not {threshold}")
    kept = energies.double().cumsum(0)
    if kept[-1] <= 0:  # an all-zero tensor: any one direction holds it
        return 1
    return min(1 + int((kept < threshold * kept[-1]).sum()), energies.numel())


def truncate_mode(
    x: Tensor, start: int, stop: int, rank: int, threshold: float, decompose: Decompose = decompose_mode
) -> tuple[Tensor, Tensor]:
    """Project modes start..stop-1, taken as one, on its leading directions.

    Args:
        x: contiguous.
        rank: most directions kept; fewer where `threshold` of the energy needs fewer.
        decompose: `decompose_mode`, or one that remembers.

    Returns:
        The projected tensor as (L, r, R), and the factor (n, r), contiguous and of its own storage.
    """
    energies, vectors = decompose(x, start, stop)
    rank = min(rank, rank_for_threshold(energies, threshold))
    factor = vectors[:, :rank].to(x.dtype).clone(memory_format=torch.contiguous_format)
    return multiply_mode(as_mode(x, start, stop), factor.mT), factor


def multiply_mode(x_LNR: Tensor, matrix_MN: Tensor) -> Tensor:
    """Multiply the middle axis by a matrix: out[l, m, r] = Σ_n matrix[m, n] x[l, n, r]. Shape (L, m, R)."""
    length, size, rest = x_LNR.shape
    if rest == 1:
        return (x_LNR.view(length, size) @ matrix_MN.mT).view(length, matrix_MN.shape[0], 1)
    if length == 1:
        return (matrix_MN @ x_LNR[0]).unsqueeze(0)
    return torch.bmm(matrix_MN.expand(length, *matrix_MN.shape), x_LNR)
