"""Seconds of a weight's gradient from an input held in few directions: features left in these, all restored, or the input whole:
`python -m bench.directions`.

Inputs of batches of 32 and 64 in a core and random factors, on which the seconds do not depend; features in a sixteenth, a quarter or
half as many directions, axes of space in half. The three ways take turns, on one thread, and its own time counts, so that others' work
does not.
Writes its table between its marks in docs/results.md.
"""

from dataclasses import dataclass
from statistics import median
from time import thread_time

import torch
from torch import Tensor

from bench.tables import write_between
from memfit.forms import Basis, Held
from memfit.operators.conv import ConvArguments, convolution
from memfit.operators.held import HeldTensor, Hold
from memfit.operators.linear import linear

SHARES, TURNS = (16, 4, 2), 9
STRIDE_1 = ConvArguments([1, 1], [1, 1], [1, 1])


@dataclass(frozen=True, slots=True)
class Layer:
    """Shape of its input and of its weight; `arguments` of a convolution."""

    name: str
    shape: tuple[int, ...]
    weight: tuple[int, ...]
    arguments: ConvArguments | None = None

    @property
    def features(self) -> int:
        return len(self.shape) - 1 if self.arguments is None else 1

    def __call__(self, x: Tensor, weight: Tensor, held: HeldTensor | None) -> Tensor:
        return linear(x, weight, None, held) if self.arguments is None else convolution(x, weight, None, self.arguments, held)


LAYERS = (
    Layer("linear 512 → 128, 64 tokens", (64, 64, 512), (128, 512)),
    Layer("linear 128 → 512, 64 tokens", (64, 64, 128), (512, 128)),
    Layer("1×1, 384 → 64, 14²", (32, 384, 14, 14), (64, 384, 1, 1), ConvArguments([1, 1], [0, 0], [1, 1])),
    Layer("1×1, 64 → 384, 14²", (32, 64, 14, 14), (384, 64, 1, 1), ConvArguments([1, 1], [0, 0], [1, 1])),
    Layer("3×3, 16 → 16, 32²", (64, 16, 32, 32), (16, 16, 3, 3), STRIDE_1),
    Layer("3×3, 64 → 64, 16²", (64, 64, 16, 16), (64, 64, 3, 3), STRIDE_1),
    Layer("3×3, 256 → 256, 14²", (32, 256, 14, 14), (256, 256, 3, 3), STRIDE_1),
    Layer("3×3, stride 2, 64 → 128, 28²", (32, 64, 28, 28), (128, 64, 3, 3), ConvArguments([2, 2], [1, 1], [1, 1])),
    Layer("transposed 2×2, stride 2, 64 → 32, 28²", (32, 64, 28, 28), (64, 32, 2, 2), ConvArguments([2, 2], [0, 0], [1, 1], 1, [0, 0])),
)


@dataclass(frozen=True, slots=True)
class Restored:
    """A form of which the whole is restored, always."""

    form: Basis

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int) -> Tensor:
        return self.form.restore(held, shape, start, stop)


def basis_of(layer: Layer, share: int) -> Basis:
    sizes = layer.shape[1:]
    space = 2 if layer.arguments is not None else 1
    ranks = tuple(max(1, n // (share if mode == layer.features else space)) for mode, n in enumerate(sizes, start=1))
    factors = [torch.linalg.qr(torch.randn(n, r))[0].flatten() for n, r in zip(sizes, ranks, strict=True) if r < n]
    return Basis(sizes, ranks, torch.cat(factors))


def seconds(layer: Layer, share: int) -> tuple[float, float, float]:
    """Of the gradient with features left in directions, with all restored, and from the whole input."""
    x, weight = torch.randn(layer.shape), torch.randn(layer.weight).requires_grad_()
    held = Hold(basis_of(layer, share))(x)
    assert held is not None and isinstance(held.form, Basis)
    outputs = [layer(x, weight, each) for each in (held, HeldTensor(Restored(held.form), held.tensors), None)]
    gradient, of_ways = torch.randn(outputs[0].shape), [[0.0] * TURNS for _ in outputs]
    for turn in range(-1, TURNS):  # the first is not counted
        found: list[Tensor] = []
        for way, output in enumerate(outputs):
            started = thread_time()
            found += torch.autograd.grad(output, weight, gradient, retain_graph=True)
            of_ways[way][turn] = thread_time() - started
        assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-4, layer.name
    left, restored, whole = map(median, of_ways)
    return left, restored, whole


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for layer in LAYERS:
        row = [layer.name]
        for share in SHARES:
            left, restored, whole = seconds(layer, share)
            row.append(f"{restored / left:.1f} / {whole / left:.1f}")
        rows.append(row)
        print(" | ".join(row), flush=True)
    note = (
        "Times faster that a weight's gradient is with features left in the directions they are held in, than with all restored / than "
        f"from the whole input. Medians of {TURNS}, by `python -m bench.directions`."
    )
    write_between("directions", note, ["layer", *(f"directions: 1/{share}" for share in SHARES)], rows)


if __name__ == "__main__":
    main()
