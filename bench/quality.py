"""Whether fidelity says what a plan is worth: `python -m bench.quality` fine-tunes by many plans and writes two tables of docs/results.md.

The demo's network, trained on upright digits, goes on learning on turned and noisy ones; with `--data ../shared/data`, a ResNet-20 on
images of CIFAR-10, too. It does so by plans of several kinds: the planner's, at budgets from the least on, for both objectives; the last
layers alone; the last layers with their inputs in HOSVD at one ε; and choices at random. Each is run from the same start with the same
orders of the data (`SEEDS` of them) at the rate that suits it best of `RATES`, falling to nothing. Peaks are measured, by the
allocator's record. Steps and images are few: each of the plans, more than thirty a network, runs ten times.

The whole batch goes through at once in all of them (a loop of one's own): divided, these small networks train without loss in a fiftieth
of the memory, and there would be nothing to compare.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional

import memfit
from bench.allocator import step_peak_bytes
from bench.tables import write_between
from bench.trained import TRAINING_IMAGES, ResNet20, load_images
from demo import data, training
from demo.finetune import MOMENTUM
from planner.alternatives import EPSILON
from planner.capture import capture
from planner.chosen import plan_of
from planner.patching import recipe_of
from planner.plan import Plan
from planner.profile import Profile
from planner.profiling import make_profile
from planner.request import Budget, Optimizer, PlanRequest, ProfileSettings
from planner.schedules import Programs
from planner.search import Solution, least_peak, limits_of
from planner.solver import plain_peak_bytes, solve
from planner.trainable import last_layers, layers, weights

OPTIMIZER = Optimizer("sgd", MOMENTUM)
SEEDS, STEPS, BATCH_SIZE = 5, 32, 16
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)  # at the start; the best is found with an order of its own
HELD_OUT = 512  # images that accuracy is of
PLANNED, RELATIVE, RANDOM = 8, 4, 8
LASTS = (1, 2, 4, 8)
BUDGETS = (0.5, 0.35, 0.2)  # of the plain peak, at which the kinds are compared
Gradients = dict[str, tuple[nn.Parameter, torch.Tensor]]  # each parameter and its gradient, by name
KINDS = ("energy", "relative", "one ε", "last layers", "random")


@dataclass(frozen=True, slots=True)
class Gradient:
    """Of one parameter, of the first batch.

    Attributes:
        energy: of the exact gradient.
        lost: energy of what the plan's gradient differs by.
        elements: how many numbers it has.
        size: the sum of the squares of its values.
    """

    name: str
    energy: float
    lost: float
    elements: int
    size: float

    @property
    def kept(self) -> float:
        return 1.0 - self.lost / self.energy


def weighed(weight: Callable[[Gradient], float]) -> Callable[[list[Gradient]], float]:
    """The mean of each parameter's own fidelity, weighed."""
    return lambda every: sum(weight(each) * each.kept for each in every) / sum(map(weight, every))


def by_layer(every: list[Gradient]) -> float:
    """The mean of layers' fidelities, a layer's parameters together."""
    of: dict[str, list[Gradient]] = {}
    for each in every:
        of.setdefault(each.name.rpartition(".")[0], []).append(each)
    return mean(1.0 - sum(each.lost for each in layer) / sum(each.energy for each in layer) for layer in of.values())


SCORES: dict[str, Callable[[list[Gradient]], float]] = {
    "fidelity": weighed(lambda each: each.energy),
    "relative": weighed(lambda each: 1.0),
    "by layer": by_layer,
    "by elements": weighed(lambda each: each.elements),
    "by norm": weighed(lambda each: each.energy**0.5),
    "by size": weighed(lambda each: each.size),
}


@dataclass(frozen=True, slots=True)
class Tried:
    """One plan: what it is, what its step took, the rate that suits it, and the accuracies it came to.

    Attributes:
        scores: by each of `SCORES`, measured on the first batch.
    """

    kind: str
    plan: Plan
    measured_bytes: int
    scores: dict[str, float]
    rate: float
    accuracies: tuple[float, ...]


def decisions(plan: Plan) -> str:
    """What a plan of one schedule decides."""
    return repr((plan.parameters, plan.activations))


class Bench:
    """A trained network, its profile, and what runs a plan.

    Args:
        device, held_out: what the network tunes on, and what it is judged by.
    """

    def __init__(self, name: str, network: nn.Module, device: data.Digits, held_out: data.Digits, folder: Path) -> None:
        self.name, self.device, self.held_out, self.folder = name, device, held_out.part(0, HELD_OUT), folder
        self.program = folder / f"{name}.pt2"
        self.accuracy_before = training.accuracy(network, self.held_out)
        batch = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(network.train(), (device.images[:8],), dynamic_shapes=batch), self.program)
        part = device.part(0, BATCH_SIZE)
        sample = {"inputs.0": part.images, "targets": part.digits}
        self.profile: Profile = make_profile(
            capture(torch.export.load(self.program)), sample, ProfileSettings(), lambda fraction, message: None
        )
        self.request = PlanRequest(None, OPTIMIZER, own_loop=True)
        self.programs = Programs(self.profile, self.request, weights(self.profile, self.request))
        self.plain_bytes = plain_peak_bytes(self.profile, OPTIMIZER)
        self._known: dict[str, Tried] = {}

    def plans(self) -> Iterator[tuple[str, Plan]]:
        exact = solve(self.profile, replace(self.request, min_fidelity=1.0)).budget_bytes
        smallest = least_peak(self.programs, limits_of(self.programs, exact))
        assert smallest is not None
        compared = [int(share * self.plain_bytes) for share in BUDGETS]
        for objective, count in (("energy", PLANNED), ("relative", RELATIVE)):
            between = [smallest[1] + (exact - smallest[1]) * n // (count - 1) for n in range(count)]
            for budget_bytes in sorted({*between, *compared}):
                budget = Budget(amount_bytes=max(budget_bytes, smallest[1]))
                yield objective, solve(self.profile, replace(self.request, budget=budget, objective=objective))  # type: ignore[arg-type]
        for last in (*LASTS, len(layers(self.profile))):
            yield "last layers", self._plan(last, {})
            yield "one ε", self._plan(last, {"hosvd": EPSILON})
        for seed in range(RANDOM):
            yield "random", self._at_random(np.random.default_rng(seed))

    def _plan(self, last: int, held: dict[str, float]) -> Plan:
        """The plain schedule with the last layers trained, and with options at these thresholds."""
        program = self.programs.undivided[0]
        names = last_layers(self.profile, last) & program.weight.keys()
        options = []
        for column, option in program.rows.options.items():
            threshold = option.settings.get("threshold")
            if isinstance(threshold, float) and abs(threshold - held.get(option.technique, np.inf)) < 1e-6:
                options.append(column)
        return self._of(Solution(program, program.choices_with(names, options), 0.0))

    def _at_random(self, random: np.random.Generator) -> Plan:
        """Parameters and options, each drawn."""
        program = self.programs.undivided[0]
        names = [name for name in program.weight if random.random() < random.random()] or [next(iter(program.weight))]
        by_form: dict[tuple[int, int], list[int]] = {}
        for column, (a, f, _) in enumerate(program.rows.at.chosen, start=program.rows.at.options):
            by_form.setdefault((a, f), []).append(column)
        drawn = [(int(random.choice(columns)), random.random() < 0.7) for columns in by_form.values()]
        return self._of(Solution(program, program.choices_with(names, [column for column, held in drawn if held]), 0.0))

    def _of(self, solution: Solution) -> Plan:
        return plan_of(solution, self.profile, self.request, self.plain_bytes, 0, self.programs.plain_seconds, 0.0)

    def tried(self, kind: str, plan: Plan) -> Tried:
        """What a plan comes to. Plans that are the same run once."""
        what = decisions(plan)
        if what not in self._known:
            self._known[what] = self._run(kind, plan)
        return replace(self._known[what], kind=kind, plan=plan)

    def _run(self, kind: str, plan: Plan) -> Tried:
        checkpoint = self.folder / "planned.pt2"
        memfit.save(checkpoint, torch.export.load(self.program), recipe_of(self.profile, plan))
        part = self.device.part(0, BATCH_SIZE)
        model = memfit.load(checkpoint).train()
        step = memfit.TrainingStep(model, lr=0.0)
        measured = step_peak_bytes(
            lambda: step(part.images, part.digits), lambda: [*model.parameters(), *model.buffers(), part.images, part.digits]
        )
        gradients = self._gradients(memfit.load(checkpoint).train())
        scores = {name: score(gradients) for name, score in SCORES.items()}
        rate = max(RATES, key=lambda rate: self._accuracy(checkpoint, rate, SEEDS))
        accuracies = tuple(self._accuracy(checkpoint, rate, seed) for seed in range(SEEDS))
        return Tried(kind, plan, measured, scores, rate, accuracies)

    def _gradients(self, model: nn.Module) -> list[Gradient]:
        """Of each parameter with a gradient."""
        exact, ours, made = self._exact, self._backward(model), []
        for name, (p, g) in exact.items():
            difference = g - ours[name][1] if name in ours else g
            energies = [float(each.detach().double().square().sum()) for each in (g, difference, p)]
            made.append(Gradient(name, energies[0], energies[1], p.numel(), energies[2]))
        return [each for each in made if each.energy]

    @cached_property
    def _exact(self) -> Gradients:
        return self._backward(capture(torch.export.load(self.program)).module)

    def _backward(self, model: nn.Module) -> Gradients:
        part = self.device.part(0, BATCH_SIZE)
        functional.cross_entropy(model(part.images), part.digits).backward()
        return {name: (p, p.grad) for name, p in model.named_parameters() if p.grad is not None}

    def _accuracy(self, checkpoint: Path, rate: float, seed: int) -> float:
        torch.manual_seed(seed)
        model = memfit.load(checkpoint).train()
        step, done = memfit.TrainingStep(model, lr=rate), 0
        while done < STEPS:
            for batch in self.device.batches(BATCH_SIZE):
                if done < STEPS:
                    step.optimizer.param_groups[0]["lr"] = rate * (1 - done / STEPS)
                    try:
                        step(batch.images, batch.digits)
                    except RuntimeError:  # LinAlgError: what diverged has no decomposition
                        return 0.0
                    done += 1
        return training.accuracy(model, self.held_out)


def benches(given: Path | None, folder: Path) -> Iterator[Bench]:
    digits = data.load()
    yield Bench("digits", training.train(digits.source), digits.device, digits.held_out, folder)
    if given is not None:
        images = load_images(given)
        shifted = data.shifted(data.Digits(images.images, images.classes), seed=1)
        network = ResNet20()
        network.load_state_dict(load_file(given / "resnet20_cifar10.safetensors"), strict=False)
        yield Bench("resnet_20", network, shifted.part(0, TRAINING_IMAGES), shifted.part(TRAINING_IMAGES, len(shifted)), folder)


def row_at(budget: float, bench: Bench, every: list[Tried]) -> Iterator[str]:
    """Of each kind, the plan of the highest fidelity whose measured peak is within the budget."""
    yield f"{bench.name}, {100 * budget:.0f} %"
    for kind in KINDS:
        fitting = [each for each in every if each.kind == kind and each.measured_bytes <= budget * bench.plain_bytes]
        best = max(fitting, key=lambda each: each.plan.fidelity, default=None)
        if best is None:
            yield "none"
        else:
            yield f"{best.plan.fidelity:.3f}: {100 * mean(best.accuracies):.1f} ± {100 * stdev(best.accuracies):.1f}"


def correlation_row(bench: Bench, kinds: tuple[str, ...], every: list[Tried]) -> list[str]:
    chosen = list({decisions(each.plan): each for each in every if each.kind in kinds}.values())  # the same plan counts once
    accuracies = [mean(each.accuracies) for each in chosen]
    found = [spearmanr([each.scores[score] for each in chosen], accuracies).statistic for score in SCORES]
    return [bench.name, kinds[0] if len(kinds) == 1 else "all", str(len(chosen)), *(f"{each:.2f}" for each in found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows, correlations = [], []
    with tempfile.TemporaryDirectory() as folder:
        for bench in benches(given.data, Path(folder)):
            print(f"{bench.name}: accuracy {100 * bench.accuracy_before:.1f} before", flush=True)
            every: list[Tried] = []
            for kind, plan in bench.plans():
                every.append(bench.tried(kind, plan))
                print(
                    f"{kind:12} {100 * every[-1].measured_bytes / bench.plain_bytes:5.1f} % fidelity {plan.fidelity:.4f} "
                    f"measured {' '.join(f'{score:.4f}' for score in every[-1].scores.values())} "
                    f"accuracy {100 * mean(every[-1].accuracies):.1f} at {every[-1].rate}",
                    flush=True,
                )
            rows += [list(row_at(budget, bench, every)) for budget in BUDGETS]
            correlations += [correlation_row(bench, kinds, every) for kinds in (KINDS, *((kind,) for kind in KINDS))]
            write(rows, correlations)


def write(rows: list[list[str]], correlations: list[list[str]]) -> None:
    command = f"`python -m bench.quality {shlex.join(sys.argv[1:])}".strip() + "`"
    note = f"{command}: fidelity: accuracy in per cent after {STEPS} steps, mean and deviation of {SEEDS} orders of the data."
    write_between("quality", note, ["measured peak at most", *KINDS], rows)
    write_between(
        "correlation",
        f"{command}: rank correlation (Spearman) of accuracy after fine-tuning with the fidelity, of the energy of all gradients, and with "
        "the mean of all parameters' own fidelities: each alike (relative), a layer's parameters together, or weighed by the number of "
        "elements, the norm of the gradient, or the energy of the parameter itself. All are measured on the first batch.",
        ["network", "plans", "count", *SCORES],
        correlations,
    )


if __name__ == "__main__":
    main()
