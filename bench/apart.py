"""Whether projections lose less with the mean of each channel apart, or with the axes of space weighted by the output's gradient:
`python -m bench.apart --data ../shared/data` (without --data: on digits).

Errors of weight gradients at equal bytes, of convolutions with batch statistics behind them and of stride 1: a ResNet-20 whose weights lie
among the data, or a MobileNet trained on digits. Directions, ranks and weights come from one batch and errors from another; means are the
batch's own, held exactly, and their part of the gradient is exact. Weights are the roots of the gradient's mode Gram matrices, of both
axes of space; the forms then have two matrices a mode, one to project and one to restore. Writes its table between its marks in
docs/results.md.
"""

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.rates import BATCH
from bench.tables import write_between
from bench.trained import Images, Layer, MobileNet, ResNet20, layers_of, load_images, train
from memfit.forms import Hosvd
from memfit.tucker import as_mode, decompose_mode, multiply_mode, rank_for_threshold
from planner.ranks import best_ranks, core_energies

SHARES, THRESHOLDS = (10, 20, 50), (0.8, 0.95)
SPACE, FLOOR = (2, 3), 1e-3  # of a weight, of their mean
MATRIX = 2 / 4  # bytes of a shipped element, of those of a held one


@dataclass(frozen=True, slots=True)
class Known:
    """Directions of every mode but the samples, and the core's energies in them, of one batch."""

    shape: tuple[int, ...]
    factors: dict[int, Tensor]
    core: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Known":
        factors = {mode: decompose_mode(x, mode, mode + 1)[1] for mode in range(1, x.dim())}
        return cls(tuple(x.shape), factors, core_energies(x, factors))

    def projected(self, x: Tensor, most_elements: int, per_factor: float) -> Tensor:
        """What a basis of so many elements gives back; nothing where there is none."""
        ranks = best_ranks(self.core, (), self.shape[0], most_elements, per_factor)
        for mode, rank in enumerate(ranks or (), start=1):
            factor = self.factors[mode][:, :rank].contiguous()
            x = times(times(x, mode, factor.mT), mode, factor) if rank < self.shape[mode] else x
        return x if ranks is not None else torch.zeros_like(x)


def times(x: Tensor, mode: int, matrix: Tensor) -> Tensor:
    return multiply_mode(as_mode(x, mode, mode + 1), matrix).view(*x.shape[:mode], -1, *x.shape[mode + 1 :])


def roots(gradient: Tensor, mode: int) -> tuple[Tensor, Tensor]:
    """The root of the Gram matrix of a mode, and its inverse; small weights lifted to the floor."""
    unfolded = gradient.movedim(mode, 0).flatten(1).double()
    weights, vectors = torch.linalg.eigh(unfolded @ unfolded.mT)
    root = (weights / weights.mean()).clamp_min(FLOOR).sqrt()
    return ((vectors * root) @ vectors.mT).float(), ((vectors / root) @ vectors.mT).float()


def mean_of(x: Tensor) -> Tensor:
    return x.mean((0, 2, 3), keepdim=True)


def errors(layer: Layer) -> dict[tuple[str, int], float]:
    """Of each way, at each share of the bytes."""
    first, x, gradient = layer.inputs[0], layer.inputs[-1], layer.output_gradients[-1]
    exact = layer.weight_gradient(gradient, x)
    weights = {mode: roots(layer.output_gradients[0], mode) for mode in SPACE}

    def weighted(values: Tensor, inverse: bool = False) -> Tensor:
        for mode in SPACE:
            values = times(values, mode, weights[mode][inverse])
        return values

    def error(restored: Tensor) -> float:
        return float((layer.weight_gradient(gradient, restored) - exact).norm() / exact.norm())

    whole, centred, heavy = Known.of(first), Known.of(first - mean_of(first)), Known.of(weighted(first))
    found = {}
    for share in SHARES:
        most, channels = x.numel() // share, x.shape[1]
        found["basis", share] = error(whole.projected(x, most, MATRIX))
        apart = centred.projected(x - mean_of(x), most - channels, MATRIX)
        found["basis, mean apart", share] = error(apart + mean_of(x))
        found["basis, weighted", share] = error(weighted(heavy.projected(weighted(x), most, 2 * MATRIX), inverse=True))
    return found


def threshold_errors(layer: Layer, threshold: float, apart: bool) -> tuple[float, float]:
    """Times fewer bytes, and error, of HOSVD at one threshold for every mode."""
    x, gradient = layer.inputs[-1], layer.output_gradients[-1]
    mean = mean_of(x) if apart else torch.zeros(1)
    values, exact = x - mean, layer.weight_gradient(gradient, x)
    form = Hosvd(tuple(rank_for_threshold(decompose_mode(values, m, m + 1)[0], threshold) for m in range(x.dim())), 1.0)
    held = form.compress(values)
    restored = form.restore(held, x.shape, 0, x.shape[0]) + mean
    elements = sum(tensor.numel() for tensor in held) + (x.shape[1] if apart else 0)
    return x.numel() / elements, float((layer.weight_gradient(gradient, restored) - exact).norm() / exact.norm())


def layers(data: Path | None) -> list[Layer]:
    """Convolutions of stride 1."""
    images = load_images(data)
    torch.manual_seed(0)
    net: nn.Module
    if data is None:
        net = MobileNet(1)
        train(net, images, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4))
    else:
        net = ResNet20()
        net.load_state_dict(load_file(data / "resnet20_cifar10.safetensors"), strict=False)
    batches = [Images(images.images[at : at + BATCH], images.classes[at : at + BATCH]) for at in (0, BATCH)]
    found = layers_of("mobilenet" if data is None else "resnet_20", net, batches, "batch")
    return [layer for layer in found if layer.inputs[0].shape[2:] == layer.output_gradients[0].shape[2:]]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path)
    torch.set_num_threads(1)
    each = layers(arguments.parse_args().data)
    measured = [errors(layer) for layer in each]
    rows = [
        [way, *(f"{median(errors[way, share] for errors in measured):.3f}" for share in SHARES)]
        for way in dict.fromkeys(way for way, _ in measured[0])
    ]
    for threshold in THRESHOLDS:
        for apart in (False, True):
            fewer, errors_of = zip(*(threshold_errors(layer, threshold, apart) for layer in each), strict=True)
            cell = f"at 1/{median(fewer):.1f}: {median(errors_of):.3f}"
            rows.append([f"HOSVD, ε = {threshold}{', mean apart' if apart else ''}", cell, *[""] * (len(SHARES) - 1)])
    for row in rows:
        print(" | ".join(row))
    note = (
        f"Median relative error of the weight gradient over {len(each)} convolutions of stride 1, batches of {BATCH}, "
        f"by `python -m bench.apart {shlex.join(sys.argv[1:])}`."
    )
    write_between("apart", note, ["way", *(f"1/{share}" for share in SHARES)], rows)


if __name__ == "__main__":
    main()
