"""Seconds of a training step with every trainable layer's input held in a form: `python -m bench.steps`.

ResNet-18 and MobileNetV2 at 8×3×224×224, each input of a convolution or linear layer that some layer made held in a tenth of its bytes,
shipped tensors counted; frozen batch norms fold into the convolutions before them. Steps of the plain model and of each technique take
turns, so that the ratio is of the same minutes.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch.fx import GraphModule

from bench import models
from bench.tables import write_between
from memfit.forms import Form, Hosvd
from memfit.losses import loss_of
from memfit.native import library
from memfit.recipe import FOLD, HeldForm
from memfit.shipped import encode, tensors_of
from memfit.tucker import rank_for_threshold
from planner.capture import TrainingGraph, capture
from planner.fidelity import holders_of_values, measure_spectra
from planner.sample import Batch, batches_of
from planner.spectra import Spectra
from planner.techniques import basis_form, settings_of, subspace_form

MODELS = ("resnet_18", "mobilenet_v2")
SHARE = 10
ROUNDS = 5


def coded(spectra: Spectra, most_bytes: int) -> Form | None:
    return spectra.coding.form(most_bytes)


def adaptive(spectra: Spectra, most_bytes: int) -> Form | None:
    form = spectra.coding.form(most_bytes)
    return None if form is None else replace(form, deviations=None)


def hosvd(spectra: Spectra, most_bytes: int) -> Form | None:
    """One share of energy for every mode, decomposed anew in every step."""
    best = None
    for threshold in torch.linspace(0.05, 0.999, 60).tolist():
        ranks = tuple(
            rank_for_threshold(spectra.of[m, m + 1], threshold) if (m, m + 1) in spectra.of else n for m, n in enumerate(spectra.shape)
        )
        if Hosvd(ranks, 1.0).held_bytes(spectra.shape, spectra.itemsize) <= most_bytes:
            best = Hosvd(ranks, 1.0)
    return best


TECHNIQUES: dict[str, Callable[[Spectra, int], Form | None]] = {
    "coded, static": coded,
    "coded, adaptive": adaptive,
    "basis": basis_form,
    "subspace, seven steps of eight": subspace_form,
    "subspace, the eighth": lambda spectra, most_bytes: subspace_form(spectra, most_bytes, every=1),
    "HOSVD a batch": hosvd,
}


def held_module(graph: TrainingGraph, loss: str, spectra: dict[str, Spectra], make: Callable[[Spectra, int], Form | None]) -> GraphModule:
    """The model with every value that has holders in a form, where the technique has one of so few bytes; as in a plan that holds
    nothing else whole, norms fold, rectifiers hold bits, and results are written over what nobody holds.
    """
    forms = [HeldForm(value, (norm.name,), FOLD, {}) for value, norm in graph.folded.items()]
    holders_of = {value: holders for value, holders in holders_of_values(graph).items() if value not in graph.folded}
    for value, holders in holders_of.items():
        size = torch.Size(spectra[value].shape).numel() * spectra[value].itemsize
        form = make(spectra[value], size // SHARE)
        if form is not None:
            settings = settings_of(form) | {name: encode(tensor) for name, tensor in tensors_of(form).items()}
            forms.append(HeldForm(value, tuple(holders), form.technique, settings))
    whole = holders_of.keys() - {form.value for form in forms}
    print(f"  {len(holders_of) - len(whole)} of {len(holders_of)} values held", flush=True)
    masks = tuple(node.name for node in graph.operations if graph.may_hold_bits(node))
    in_place = tuple(name for name, x in graph.overwritable.items() if x.name not in whole)
    return graph.rewritten(replace(graph.exact_recipe(loss), forms=tuple(forms), masks=masks, in_place=in_place))


def step_of(module: GraphModule, batch: Batch, loss: str) -> Callable[[], None]:
    def step() -> None:
        loss_of(loss, module(*batch.inputs), batch.targets).backward()
        for parameter in module.parameters():
            parameter.grad = None

    return step


def seconds(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(ROUNDS + 1):
        for name, step in steps.items():
            started = perf_counter()
            step()
            if turn:  # the first warms up
                taken[name].append(perf_counter() - started)
    return {name: median(times) for name, times in taken.items()}


def measure(name: str) -> list[str]:
    case = models.CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        models.export(name, path)
        graph = capture(torch.export.load(path))
    batch = batches_of(models.sample(name), graph.inputs, case.loss, case.batch)[0]
    started = perf_counter()
    spectra = measure_spectra(graph, [batch], case.loss, lambda done: None)
    print(f"{name}: spectra in {perf_counter() - started:.1f} s", flush=True)
    steps = {"plain": step_of(graph.module, batch, case.loss)}
    for technique, make in TECHNIQUES.items():
        steps[technique] = step_of(held_module(graph, case.loss, spectra, make), batch, case.loss)
    times = seconds(steps)
    row = [name, f"{times['plain']:.2f} s", *(f"{times[technique] / times['plain']:.2f}×" for technique in TECHNIQUES)]
    print(" | ".join(row), flush=True)
    return row


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    rows = [measure(name) for name in arguments.parse_args().models]
    way = "in C" if library() else "by torch operations"
    note = (
        f"A step with every trainable layer's input in 1/{SHARE} of its bytes and norms folded, of the plain step's seconds, "
        f"`coded` {way}, by `python -m bench.steps`."
    )
    write_between("steps", note, ["model", "plain", *TECHNIQUES], rows)


if __name__ == "__main__":
    main()
