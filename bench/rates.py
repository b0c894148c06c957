"""Bytes against weight-gradient error, for every technique: `python -m bench.rates --data ../shared/data` (without --data: on digits).

Techniques that learn from a sample see two batches; errors are those of a third. Every stored byte is counted, tensors that the checkpoint
ships among them. Writes its table between its marks in docs/results.md.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from bench.tables import write_between
from bench.trained import Images, Layer, layers_of, load_images, networks
from memfit.forms import Bfloat16, Bitmap, Form, Hosvd, Int4, Int8, PatchMean
from memfit.shipped import tensors_of
from memfit.tucker import decompose_mode, rank_for_threshold
from planner.above_zero import room_above_zero
from planner.coding import Coding
from planner.spectra import Spectra
from planner.techniques import basis_form

BATCH, CALIBRATION = 64, 2
SHARES = (5, 10, 20, 50)
Maker = Callable[[Layer, Spectra, int], Form | None]


def coded(layer: Layer, spectra: Spectra, most_bytes: int) -> Form | None:
    return spectra.coding.form(most_bytes)


def adaptive(layer: Layer, spectra: Spectra, most_bytes: int) -> Form | None:
    """The same transform; the table of each batch is worked out from it, and held with it in as many bytes as the shipped one."""
    form = spectra.coding.form(most_bytes - 4)
    return None if form is None else replace(form, deviations=None)


def basis(layer: Layer, spectra: Spectra, most_bytes: int) -> Form | None:
    return basis_form(spectra, most_bytes)


def bitmap(spectra: Spectra, bits: int | None) -> Form | None:
    """With room for what the calibration batches have above zero; of inputs that are never below."""
    return Bitmap(*room_above_zero(spectra.above_zero), bits) if spectra.above_zero else None


def hosvd_ranks(layer: Layer, spectra: Spectra, most_bytes: int) -> Form | None:
    """Ranks that keep the most energy in these bytes, on the calibration batch; decomposed anew for each batch."""
    ranks = spectra.ranks(most_bytes // 4)
    return None if ranks is None else Hosvd((spectra.shape[0], *ranks), 1.0)


def hosvd_one_threshold(layer: Layer, spectra: Spectra, most_bytes: int) -> Form | None:
    """The papers' rule: one share of energy for every mode, decomposed anew for each batch; the largest share that fits the bytes."""
    x = layer.inputs[-1]
    of_modes = [decompose_mode(x, mode, mode + 1)[0] for mode in range(x.dim())]
    low, high, best = 0.0, 1.0, None
    for _ in range(30):
        threshold = (low + high) / 2
        form = Hosvd(tuple(rank_for_threshold(energies, threshold) for energies in of_modes), 1.0)
        if form.held_bytes(tuple(x.shape), x.element_size()) <= most_bytes:
            low, best = threshold, form
        else:
            high = threshold
    return best


TECHNIQUES: dict[str, Maker] = {
    "HOSVD, one ε for all modes (papers)": hosvd_one_threshold,
    "HOSVD, ranks for the bytes": hosvd_ranks,
    "basis, ranks for the bytes": basis,
    "coded, adaptive": adaptive,
    "coded, static": coded,
}
# Whose bytes are what they come to; of those that are not for every layer, the others are left out.
FIXED: dict[str, Callable[[Layer, Spectra], Form | None]] = {
    "bfloat16": lambda layer, spectra: Bfloat16(),
    "int8": lambda layer, spectra: Int8(),
    "int4": lambda layer, spectra: Int4(),
    "bitmap, exact": lambda layer, spectra: bitmap(spectra, None),
    "bitmap, 8 bits": lambda layer, spectra: bitmap(spectra, 8),
    "bitmap, 4 bits": lambda layer, spectra: bitmap(spectra, 4),
    "patch mean 2×2": lambda layer, spectra: None if layer.family == "linear" else PatchMean((2, 2)),
}


def errors(form: Form | None, layer: Layer, most_bytes: int) -> tuple[float, float] | None:
    """Relative error of the weight gradient, and share of the energy lost; None where nothing fits. Checks the bytes."""
    if form is None:
        return None
    x, gradient = layer.inputs[-1], layer.output_gradients[-1]
    held = form.compress(x)
    stored = sum(tensor.untyped_storage().nbytes() for tensor in (*held, *tensors_of(form).values()))
    assert stored <= most_bytes, (layer.name, form.technique, stored, most_bytes)
    restored = form.restore(held, x.shape, 0, x.shape[0])
    exact = layer.weight_gradient(gradient, x)
    lost = layer.weight_gradient(gradient, restored) - exact
    return float(lost.norm() / exact.norm()), float((restored - x).square().sum() / x.square().sum())


def gaussian_bound(coding: Coding, most_bytes: int) -> float:
    """Least share of the energy that any code of these bytes loses of Gaussian coefficients of the same variances: D(R)."""
    best = 1.0
    for variant in coding.variants:
        assert variant.energies is not None
        variances = variant.energies.double() / variant.energies.double().sum()
        bits = 8 * most_bytes / (coding.shape[0] * variant.transform.blocks_of(coding.shape))
        low, high = -60.0, 0.0  # log2 of the water level
        for _ in range(60):
            level = (low + high) / 2
            rate = float((0.5 * (torch.log2(variances.clamp_min(1e-30)) - level)).clamp_min(0).sum())
            low, high = (level, high) if rate > bits else (low, level)
        best = min(best, float(variances.clamp_max(2.0**high).sum()))
    return best


def spectra_of(layer: Layer) -> Spectra:
    x, gradient = layer.inputs[0], layer.output_gradients[0]
    work = gradient.numel() * layer.weight_gradient(gradient, x)[0].numel() / x.numel()
    spectra = Spectra.of_shape(tuple(x.shape), 4, layer.feature, (0.0,) if layer.rectified else (), work)
    for x in layer.inputs[:CALIBRATION]:
        spectra.add(x)
    return spectra


def measure(layers: list[Layer]) -> list[list[str]]:
    """A row a technique: medians over convolutions and over linear layers, at each share of the bytes."""
    kinds = {"convolutions": [x for x in layers if x.family != "linear"], "linear": [x for x in layers if x.family == "linear"]}
    known = {layer.name: spectra_of(layer) for layer in layers}
    rows = []
    for technique, make in TECHNIQUES.items():
        row = [technique]
        for each in kinds.values():
            for share in SHARES:
                found = [errors(make(layer, known[layer.name], budget(layer, share)), layer, budget(layer, share)) for layer in each]
                row.append(cell(found))
        rows.append(row)
        print(" | ".join(row), flush=True)
    for technique, form_of in FIXED.items():
        row = [technique]
        for each in kinds.values():
            of = [(layer, form) for layer in each if (form := form_of(layer, known[layer.name])) is not None]
            sizes = [form.held_bytes(tuple(layer.inputs[-1].shape), 4) for layer, form in of]
            found = [errors(form, layer, size) for (layer, form), size in zip(of, sizes, strict=True)]
            ratio = median(layer.inputs[-1].nbytes / size for (layer, _), size in zip(of, sizes, strict=True)) if of else 0.0
            which = "" if len(of) == len(each) else f", of {len(of)}"
            row += [f"at 1/{ratio:.1f}{which}: {cell(found)}" if of else "", *[""] * (len(SHARES) - 1)]
        rows.append(row)
        print(" | ".join(row), flush=True)
    rows.append(["Gaussian bound D(R), energy"])
    for each in kinds.values():
        rows[-1] += [f"({median(gaussian_bound(known[x.name].coding, budget(x, share)) for x in each):.4f})" for share in SHARES]
    print(" | ".join(rows[-1]), flush=True)
    return rows


def budget(layer: Layer, share: int) -> int:
    return layer.inputs[-1].nbytes // share


def cell(found: list[tuple[float, float] | None]) -> str:
    """Median gradient error and, in parentheses, lost energy; nothing held counts as all lost."""
    gradients = [1.0 if each is None else each[0] for each in found]
    energies = [1.0 if each is None else each[1] for each in found]
    return f"{median(gradients):.3f} ({median(energies):.4f})"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path)
    arguments.add_argument("--batch-norm", choices=("frozen", "batch"), default="batch")
    given = arguments.parse_args()
    images = load_images(given.data)
    batches = [Images(part.images, part.classes) for part in _batches(images)]
    layers = [layer for name, net in networks(given.data, images).items() for layer in layers_of(name, net, batches, given.batch_norm)]
    rows = measure(layers)
    convolutions = sum(layer.family != "linear" for layer in layers)
    heading = ["technique", *(f"conv 1/{share}" for share in SHARES), *(f"linear 1/{share}" for share in SHARES)]
    note = (
        f"Medians over {convolutions} convolutions and {len(layers) - convolutions} linear layers, batches of {BATCH}, "
        f"by `python -m bench.rates {shlex.join(sys.argv[1:])}`: relative error of the weight gradient (share of the energy lost)."
    )
    write_between(f"rates {'digits' if given.data is None else 'images'}", note, heading, rows)


def _batches(images: Images) -> list[Images]:
    cuts: list[tuple[Tensor, Tensor]] = list(zip(images.images.split(BATCH), images.classes.split(BATCH), strict=True))
    return [Images(*cut) for cut in cuts[: CALIBRATION + 1]]


if __name__ == "__main__":
    main()
