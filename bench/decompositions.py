"""Seconds and workspace of mode decompositions against full SVDs of the four unfoldings: `python -m bench.decompositions`.

Tensors of the shapes of ResNet and MobileNet activations whose energy falls along every mode; ranks at ε = 0.8 for every mode, the same
for both. One thread does both.
"""

from math import prod
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from bench.allocator import step_peak_bytes
from bench.tables import write_between
from memfit.forms import Hosvd
from memfit.tucker import rank_for_threshold

THRESHOLD = 0.8
SHAPES = [
    (32, 16, 112, 112),
    (32, 24, 56, 56),
    (32, 64, 56, 56),
    (32, 96, 56, 56),
    (32, 144, 56, 56),
    (32, 32, 28, 28),
    (32, 128, 28, 28),
    (32, 192, 28, 28),
    (32, 64, 14, 14),
    (32, 256, 14, 14),
    (32, 384, 14, 14),
    (32, 160, 7, 7),
    (32, 512, 7, 7),
    (64, 16, 32, 32),
    (64, 32, 16, 16),
    (64, 64, 8, 8),
    (64, 96, 14, 14),
    (128, 16, 32, 32),
    (128, 32, 16, 16),
    (128, 64, 8, 8),
    (128, 64, 4, 4),
]


def tensor_of(shape: tuple[int, ...]) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for mode, size in enumerate(shape[1:], start=1):
        x = x * (0.93 ** torch.arange(size)).view([-1 if m == mode else 1 for m in range(len(shape))])
    return x


def with_svds(x: Tensor) -> tuple[list[int], Tensor]:
    """Four full singular value decompositions, ranks by the threshold, core by projection on all four at once; the papers' way."""
    factors = []
    for mode in range(x.dim()):
        unfolded = x.movedim(mode, 0).reshape(x.shape[mode], -1)
        left, values, _ = torch.linalg.svd(unfolded, full_matrices=False)
        factors.append(left[:, : rank_for_threshold(values.square(), THRESHOLD)])
    core = x
    for mode, factor in enumerate(factors):
        core = torch.tensordot(core, factor, dims=([mode], [0])).movedim(-1, mode)
    for mode, factor in enumerate(factors):
        core = torch.tensordot(core, factor, dims=([mode], [1])).movedim(-1, mode)
    return [factor.shape[1] for factor in factors], core


def measure(shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Times faster, workspace as a share of the tensor, and error as a multiple of the SVDs'."""
    x = tensor_of(shape)
    started = perf_counter()
    ranks, theirs = with_svds(x)
    svd_seconds = perf_counter() - started
    form = Hosvd(tuple(ranks), 1.0)
    held = form.compress(x)
    repeats = []
    for _ in range(3):
        started = perf_counter()
        form.compress(x)
        repeats.append(perf_counter() - started)
    ours = form.restore(held, x.shape, 0, x.shape[0])
    workspace = step_peak_bytes(lambda: form.compress(x)) - sum(tensor.nbytes for tensor in held)
    error = float((x - ours).square().sum() / (x - theirs).square().sum())
    print(f"{shape}: ranks {ranks}, {svd_seconds / min(repeats):.0f}×, workspace {workspace / x.nbytes:.2f}, error {error:.3f}", flush=True)
    return svd_seconds / min(repeats), workspace / x.nbytes, error


def main() -> None:
    torch.set_num_threads(1)
    assert all(prod(shape) > 0 for shape in SHAPES)
    measured = [measure(shape) for shape in SHAPES]
    rows = [
        [name, f"{median(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}"]
        for name, values in zip(("times faster", "workspace ÷ tensor", "squared error ÷ SVDs'"), zip(*measured, strict=True), strict=True)
    ]
    note = (
        f"Sequentially truncated HOSVD from Gram matrices against four full SVDs at their ranks for ε = {THRESHOLD}, {len(SHAPES)} shapes."
    )
    write_between("decompositions", f"{note} By `python -m bench.decompositions`.", ["", "median", "least", "most"], rows)


if __name__ == "__main__":
    main()
