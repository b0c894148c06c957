"""Accuracy after fine-tuning with compressed activations: `python -m bench.finetuning --data ../shared/data`.

Without --data, on digits alone.

A small network, trained on upright images, goes on learning on turned and noisy ones. The input of every convolution but the first,
which reads the images, is held in an eighth or a sixtieth of its bytes, shipped tensors counted; batch norms go on by batches, and hold
their own inputs whole. Forms are made from the first batch of the turned images; all ways have the same seeds and steps. Writes its
table between its marks in docs/results.md.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from bench.tables import write_between
from bench.trained import Images, normed
from memfit.forms import Form, Hosvd, Int4, PatchMean
from memfit.operators.conv import convolution
from memfit.recipe import HeldForm
from memfit.shipped import encode, tensors_of
from memfit.tucker import rank_for_threshold
from planner.capture import TrainingGraph, capture_module
from planner.fidelity import holders_of_values, measure_spectra
from planner.sample import Batch
from planner.spectra import Spectra
from planner.techniques import basis_form, settings_of, subspace_form

BATCH, SIDE = 64, 28
SHARES = (8, 60)
TURN, NOISE = 45.0, 0.2  # degrees, and deviations of the pixels
STEPS, RATE, LAST_LAYER_RATE, MOMENTUM = 100, 0.02, 0.05, 0.9
Maker = Callable[[dict[str, Spectra], int], dict[str, Form]]


class Net(nn.Module):
    """Five convolutions of 3×3, three of them with stride 1, on maps of 28, 14 and 7."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        shapes = ((1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        self.layers = nn.Sequential(*(layer for a, b, stride in shapes for layer in (normed(a, b, 3, stride), nn.ReLU())))
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(images).mean((2, 3)))
        return logits


def load(data: Path | None, name: str) -> tuple[Images, Images, Images]:
    """Upright images to train on, and turned ones to tune on and to judge by."""
    if name == "digits":
        bunch = load_digits()
        images, classes = torch.tensor(bunch.images / 16.0).float()[:, None], torch.tensor(bunch.target)
    else:
        assert data is not None
        archive = np.load(data / "fashion_mnist_subset.npz")
        images = torch.tensor(np.concatenate([archive["train_x"], archive["test_x"]]))[:, None].float() / 255
        classes = torch.tensor(np.concatenate([archive["train_y"], archive["test_y"]])).long()
    images = functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear")
    images = (images - images.mean()) / images.std()
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    third = len(classes) // 3
    cuts = [order[:third], order[third : 2 * third], order[2 * third :]]
    turned = shifted(images)
    return (
        Images(images[cuts[0]], classes[cuts[0]]),
        Images(turned[cuts[1]], classes[cuts[1]]),
        Images(turned[cuts[2]], classes[cuts[2]]),
    )


def shifted(images: Tensor) -> Tensor:
    """Turned, with noise."""
    angle = torch.tensor(TURN).deg2rad()
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]]).expand(len(images), 2, 3)
    grid = functional.affine_grid(turn, list(images.shape), align_corners=False)
    turned = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return turned + NOISE * torch.randn(turned.shape, generator=torch.Generator().manual_seed(1))


def train(net: nn.Module, images: Images, steps: int, rate: float) -> None:
    """By SGD with momentum, the rate falling to nothing."""
    net.train()
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=rate, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    done = 0
    while done < steps:
        for chosen in torch.randperm(len(images.classes)).split(BATCH):
            if done == steps or len(chosen) < BATCH:
                break
            loss = functional.cross_entropy(net(images.images[chosen]), images.classes[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1


def accuracy(net: nn.Module, images: Images) -> float:
    net.eval()
    with torch.no_grad():
        return float((net(images.images).argmax(1) == images.classes).float().mean())


def _found(spectra: dict[str, Spectra], share: int, make: Callable[[Spectra, int], Form | None]) -> dict[str, Form]:
    """Where there is a form of so few bytes."""
    found = {value: make(each, _bytes(each) // share) for value, each in spectra.items()}
    return {value: form for value, form in found.items() if form is not None}


def coded(spectra: dict[str, Spectra], share: int) -> dict[str, Form]:
    return _found(spectra, share, lambda each, most_bytes: each.coding.form(most_bytes))


def basis(spectra: dict[str, Spectra], share: int) -> dict[str, Form]:
    """Directions of the first batch, never refreshed."""
    return _found(spectra, share, basis_form)


def subspace(spectra: dict[str, Spectra], share: int) -> dict[str, Form]:
    """The same, refreshed every few steps."""
    return _found(spectra, share, subspace_form)


def subspace_every_step(spectra: dict[str, Spectra], share: int) -> dict[str, Form]:
    return _found(spectra, share, partial(subspace_form, every=1))


def hosvd(spectra: dict[str, Spectra], share: int) -> dict[str, Form]:
    """The papers' rule: one share of the energy for all modes of all layers, the largest that fits the bytes of all of them."""
    best: dict[str, Form] = {}
    for threshold in torch.linspace(0.02, 0.999, 200).tolist():
        forms: dict[str, Form] = {
            value: Hosvd(tuple(rank_for_threshold(each.of[m, m + 1], threshold) for m in range(len(each.shape))), threshold)
            for value, each in spectra.items()
        }
        if _held(forms, spectra) <= sum(map(_bytes, spectra.values())) // share:
            best = forms
    return best


def int4(spectra: dict[str, Spectra], share: int) -> dict[str, Form]:
    return dict.fromkeys(spectra, Int4())


def patch_mean(spectra: dict[str, Spectra], share: int) -> dict[str, Form]:
    return dict.fromkeys(spectra, PatchMean((2, 4) if share == SHARES[0] else (8, 8)))


def _bytes(spectra: Spectra) -> int:
    return spectra.itemsize * prod(spectra.shape)


def _held(forms: dict[str, Form], spectra: dict[str, Spectra]) -> int:
    shipped = sum(tensor.nbytes for form in forms.values() for tensor in tensors_of(form).values())
    return shipped + sum(form.held_bytes(spectra[value].shape, spectra[value].itemsize) for value, form in forms.items())


WAYS: dict[str, tuple[Maker, tuple[int, ...]]] = {
    "coded, static": (coded, SHARES),
    "basis": (basis, SHARES),
    "subspace": (subspace, SHARES),
    "subspace, every step": (subspace_every_step, SHARES),
    "HOSVD, one ε (papers)": (hosvd, SHARES),
    "int4": (int4, SHARES[:1]),
    "patch mean": (patch_mean, SHARES),
}


def with_forms(graph: TrainingGraph, spectra: dict[str, Spectra], make: Maker, share: int) -> tuple[GraphModule, float]:
    """The network with its convolutions' inputs in forms, and how many times fewer bytes that is."""
    forms = make(spectra, share)
    assert forms.keys() == spectra.keys(), "every input is held in a form"
    holders = convolutions_of(graph)
    held = tuple(
        HeldForm(value, holders[value], form.technique, settings_of(form) | {name: encode(t) for name, t in tensors_of(form).items()})
        for value, form in forms.items()
    )
    module = graph.rewritten(replace(graph.exact_recipe("cross_entropy"), forms=held))
    return module, sum(map(_bytes, spectra.values())) / _held(forms, spectra)


def convolutions_of(graph: TrainingGraph) -> dict[str, tuple[str, ...]]:
    """The convolutions that read each value."""
    nodes = {node.name: node for node in graph.exact.graph.nodes}
    found = {value: tuple(name for name in names if nodes[name].target is convolution) for value, names in holders_of_values(graph).items()}
    return {value: names for value, names in found.items() if names}


def measure(data: Path | None, name: str, seed: int) -> dict[str, tuple[float, float]]:
    """For each way: accuracy on turned images it has not seen, and times fewer bytes of the convolutions' inputs."""
    upright, turned, unseen = load(data, name)
    torch.manual_seed(seed)
    net = Net()
    train(net, upright, 2 * STEPS, 0.05)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    batch = Batch((turned.images[:BATCH],), turned.classes[:BATCH])
    graph = capture_module(net.train(), batch.inputs, "batch")
    values = convolutions_of(graph)
    found = {"before": (accuracy(net, unseen), 1.0)}
    spectra = {v: each for v, each in measure_spectra(graph, [batch], "cross_entropy", lambda done: None).items() if v in values}

    def tuned(label: str, module: GraphModule, times: float, rate: float = RATE) -> None:
        module.load_state_dict(weights)
        torch.manual_seed(seed)
        train(module, turned, STEPS, rate)
        found[label] = (accuracy(module, unseen), times)
        print(f"{name}, seed {seed}: {label}: {100 * found[label][0]:.1f} % at 1/{times:.1f}", flush=True)

    tuned("plain", graph.rewritten(graph.exact_recipe("cross_entropy")), 1.0)
    for label, (make, shares) in WAYS.items():
        for share in shares:
            tuned(f"{label} 1/{share}", *with_forms(graph, spectra, make, share))
    last = graph.rewritten(replace(graph.exact_recipe("cross_entropy"), trained=("head.weight", "head.bias")))
    tuned("last layer only", last, float("inf"), LAST_LAYER_RATE)
    return found


def cell(found: list[tuple[float, float]]) -> str:
    accuracies = [100 * each[0] for each in found]
    spread = f" ± {stdev(accuracies):.1f}" if len(found) > 1 else ""
    return f"{mean(accuracies):.1f}{spread}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path)
    arguments.add_argument("--seeds", type=int, default=5)
    given = arguments.parse_args()
    sets = ["digits"] if given.data is None else ["digits", "fashion"]
    found = {name: [measure(given.data, name, seed) for seed in range(given.seeds)] for name in sets}
    rows = []
    for label in found[sets[0]][0]:
        times = found[sets[0]][0][label][1]
        held = {1.0: "all", float("inf"): "none"}.get(times, f"1/{times:.1f}")
        rows.append([label, held, *(cell([each[label] for each in found[name]]) for name in sets)])
    note = (
        f"Accuracy in per cent on unseen images turned by {TURN:.0f}°, with noise, mean and deviation of {given.seeds} seeds, "
        f"by `python -m bench.finetuning {shlex.join(sys.argv[1:])}`."
    )
    write_between("finetuning", note, ["way", "conv bytes held", *sets], rows)


if __name__ == "__main__":
    main()
