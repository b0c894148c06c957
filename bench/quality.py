"""Whether fidelity says what a plan is worth: `python -m bench.quality` fine-tunes by many plans and writes two tables of docs/results.md.

The demo's network, trained on upright digits, goes on learning on turned and noisy ones, by plans of four kinds: the planner's, at
budgets from the least on; the last layers alone; the last layers with their inputs in HOSVD at one ε; and choices at random. Each is run
from the same start with the same orders of the data (`SEEDS` of them). Peaks are measured, by the allocator's record.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from scipy.stats import spearmanr

import memfit
from bench.allocator import step_peak_bytes
from bench.tables import write_between
from demo import data, training
from demo.finetune import MOMENTUM
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
SEEDS, STEPS, BATCH_SIZE, LR = 5, 16, 64, 0.016
PLANNED, RANDOM = 12, 10
LASTS = (1, 2, 4, 8, 12, 16)
BUDGETS = (0.25, 0.1, 0.05)  # of the plain peak, at which the kinds are compared
KINDS = ("planner", "one ε", "last layers", "random")


@dataclass(frozen=True, slots=True)
class Tried:
    """One plan: what it is, what its step took, and the accuracies it came to."""

    kind: str
    plan: Plan
    measured_bytes: int
    accuracies: tuple[float, ...]


class Bench:
    """The network, its profile, and what runs a plan."""

    def __init__(self, folder: Path) -> None:
        self.digits, self.folder = data.load(), folder
        self.program = folder / "digits.pt2"
        training.export(training.train(self.digits.source), self.program)
        part = self.digits.device.part(0, BATCH_SIZE)
        sample = {"inputs.0": part.images, "targets": part.digits}
        self.profile: Profile = make_profile(
            capture(torch.export.load(self.program)), sample, ProfileSettings(), lambda fraction, message: None
        )
        self.request = PlanRequest(None, OPTIMIZER)
        self.programs = Programs(self.profile, self.request, weights(self.profile, self.request))
        self.plain_bytes = plain_peak_bytes(self.profile, OPTIMIZER)

    def plans(self) -> Iterator[tuple[str, Plan]]:
        exact = solve(self.profile, replace(self.request, min_fidelity=1.0)).budget_bytes
        smallest = least_peak(self.programs, limits_of(self.programs, exact))
        assert smallest is not None
        between = [smallest[1] + (exact - smallest[1]) * n // (PLANNED - 1) for n in range(PLANNED)]
        for budget_bytes in sorted({*between, *(int(share * self.plain_bytes) for share in BUDGETS)}):
            yield "planner", solve(self.profile, replace(self.request, budget=Budget(amount_bytes=budget_bytes)))
        every = len(layers(self.profile))
        for last in (*LASTS, every):
            yield "last layers", self._plan(last, {})
            for threshold in (0.8, 0.95):
                yield "one ε", self._plan(last, {"hosvd": threshold})
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
        """A schedule, parameters and options, each drawn."""
        every = list(self.programs)
        program = every[random.integers(len(every))]
        names = [name for name in program.weight if random.random() < random.random()] or [next(iter(program.weight))]
        by_form: dict[tuple[int, int], list[int]] = {}
        for column, (a, f, _) in enumerate(program.rows.at.chosen, start=program.rows.at.options):
            by_form.setdefault((a, f), []).append(column)
        drawn = [(int(random.choice(columns)), random.random() < 0.7) for columns in by_form.values()]
        return self._of(Solution(program, program.choices_with(names, [column for column, held in drawn if held]), 0.0))

    def _of(self, solution: Solution) -> Plan:
        return plan_of(solution, self.profile, self.request, self.plain_bytes, 0, self.programs.plain_seconds, 0.0)

    def tried(self, kind: str, plan: Plan) -> Tried:
        checkpoint = self.folder / "planned.pt2"
        memfit.save(checkpoint, torch.export.load(self.program), recipe_of(self.profile, plan))
        part = self.digits.device.part(0, BATCH_SIZE)
        model = memfit.load(checkpoint).train()
        step = memfit.TrainingStep(model, lr=0.0)
        measured = step_peak_bytes(
            lambda: step(part.images, part.digits), [*model.parameters(), *model.buffers(), part.images, part.digits]
        )
        return Tried(kind, plan, measured, tuple(self._accuracy(checkpoint, seed) for seed in range(SEEDS)))

    def _accuracy(self, checkpoint: Path, seed: int) -> float:
        torch.manual_seed(seed)
        model = memfit.load(checkpoint).train()
        step, done = memfit.TrainingStep(model, lr=LR), 0
        while done < STEPS:
            for batch in self.digits.device.batches(BATCH_SIZE):
                if done < STEPS:
                    step(batch.images, batch.digits)
                    done += 1
        return training.accuracy(model, self.digits.held_out)


def row_at(budget: float, plain_bytes: int, every: list[Tried]) -> Iterator[str]:
    """Of each kind, the plan of the highest fidelity whose measured peak is within the budget."""
    yield f"{100 * budget:.0f} %"
    for kind in KINDS:
        fitting = [each for each in every if each.kind == kind and each.measured_bytes <= budget * plain_bytes]
        best = max(fitting, key=lambda each: each.plan.fidelity, default=None)
        if best is None:
            yield "none"
        else:
            yield f"{best.plan.fidelity:.3f}: {100 * mean(best.accuracies):.1f} ± {100 * stdev(best.accuracies):.1f}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    every: list[Tried] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for kind, plan in bench.plans():
            every.append(bench.tried(kind, plan))
            print(
                f"{kind:12} {100 * every[-1].measured_bytes / bench.plain_bytes:5.1f} % fidelity {plan.fidelity:.4f} "
                f"accuracy {100 * mean(every[-1].accuracies):.1f}",
                flush=True,
            )
    note = (
        f"`python -m bench.quality`: fidelity: accuracy in per cent after {STEPS} steps, mean and deviation of {SEEDS} orders of the data."
    )
    rows = [list(row_at(budget, bench.plain_bytes, every)) for budget in BUDGETS]
    write_between("quality", note, ["measured peak at most", *KINDS], rows)
    correlations = []
    for kinds in (KINDS, *((kind,) for kind in KINDS)):
        chosen = [each for each in every if each.kind in kinds]
        found = spearmanr([each.plan.fidelity for each in chosen], [mean(each.accuracies) for each in chosen])
        correlations.append([" and ".join(kinds) if len(kinds) < len(KINDS) else "all", str(len(chosen)), f"{found.statistic:.2f}"])
    write_between(
        "correlation",
        "`python -m bench.quality`: rank correlation (Spearman) of planned fidelity with accuracy after fine-tuning.",
        ["plans", "count", "correlation"],
        correlations,
    )


if __name__ == "__main__":
    main()
