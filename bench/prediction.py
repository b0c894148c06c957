"""How well peaks are predicted: `python -m bench.prediction` plans cells of models, batch sizes, optimizers and budgets, measures the
first plan of each in a process of its own, and writes docs/prediction.md. `--models` does some, and leaves the rows of the others.

Where a first plan is over its budget, it goes through verification, and the peak of what that returns stands beside it.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

import memfit
from bench import models
from bench.cells import Printing, mebibytes, stages
from bench.measure import allocator_peak_bytes
from bench.tables import Rows, with_those_of_others, write_between
from planner.errors import InfeasibleBudget, UnverifiedPlan
from planner.patching import recipe_of
from planner.plan import Plan
from planner.profile import Profile
from planner.request import Optimizer, PlanRequest, ProfileSettings, parse_budget
from planner.solver import solve
from service import pipeline

PAGE = Path("docs/prediction.md")
BATCHES = {
    "mobilenet_v2": (4, 8),
    "resnet_18": (4, 8),
    "resnet_50": (4,),
    "vit_tiny": (4, 8),
    "bert_4": (8, 16),
    "unet": (4, 8),
    "gpt": (8,),
}
OPTIMIZERS = {"sgd": Optimizer(), "momentum": Optimizer("sgd", 0.9), "adam": Optimizer("adam")}
BUDGETS = {"sgd": ("60%", "30%"), "momentum": ("80%", "40%"), "adam": ("70%", "50%")}
OVER = "**over**"
HEADINGS = ("model", "batch", "optimizer", "budget", "schedule", "fidelity", "predicted", "measured", "error", "verified")
ERROR = HEADINGS.index("error")


@dataclass(frozen=True, slots=True)
class Cell:
    """One first plan and what its step took. `verified_bytes`: of the plan that verification came to, None if it is the first."""

    model: str
    batch: int
    optimizer: str
    plan: Plan
    measured_bytes: int
    verified_bytes: int | None

    @property
    def error(self) -> float:
        return self.measured_bytes / self.plan.predicted_peak_bytes - 1

    @property
    def holds(self) -> bool:
        return (self.verified_bytes or self.measured_bytes) <= self.plan.budget_bytes

    def row(self) -> list[str]:
        return [
            self.model,
            str(self.batch),
            self.optimizer,
            mebibytes(self.plan.budget_bytes),
            str(self.plan.schedule),
            f"{self.plan.fidelity:.4f}",
            mebibytes(self.plan.predicted_peak_bytes),
            mebibytes(self.measured_bytes),
            f"{100 * self.error:+.2f} %",
            OVER if not self.holds else mebibytes(self.verified_bytes) if self.verified_bytes else "the first",
        ]


def profile_of(name: str, batch: int, folder: Path) -> Profile:
    model, sample = folder / f"{name}.pt2", folder / f"{name}-{batch}.safetensors"
    if not model.exists():
        models.export(name, model)
    models.write_sample(name, sample, batch)
    with stages(folder / "log") as running:
        settings = ProfileSettings(models.CASES[name].loss, batch_size=batch)
        return pipeline.measure(running, model, sample, settings, Printing(f"{name}, batch {batch}"))


def cell(name: str, batch: int, optimizer: str, budget: str, profile: Profile, folder: Path) -> Cell | None:
    """None where no plan fits the budget."""
    model, sample, checkpoint = folder / f"{name}.pt2", folder / f"{name}-{batch}.safetensors", folder / "checkpoint.pt2"
    request = PlanRequest(parse_budget(budget), OPTIMIZERS[optimizer])
    try:
        plan = solve(profile, request)
    except InfeasibleBudget:
        return None
    memfit.save(checkpoint, torch.export.load(model), recipe_of(profile, plan))
    measured = verified = allocator_peak_bytes(name, sample, checkpoint)
    if measured > plan.budget_bytes:
        with stages(folder / "log") as running:
            try:
                verified = pipeline.prove(running, model, sample, profile, request, Printing(name)).certificate.measured_peak_bytes
            except InfeasibleBudget:
                return None
            except UnverifiedPlan:
                pass  # it stays over
    return Cell(name, batch, optimizer, plan, measured, verified if verified != measured else None)


def summary(rows: Rows) -> str:
    planned = [row for row in rows if row[ERROR]]
    errors = [abs(float(row[ERROR].removesuffix(" %"))) for row in planned]
    return (
        f"{len(planned)} cells with a plan, {len(rows) - len(planned)} without: median absolute error {median(errors):.2f} %, "
        f"worst {max(errors):.2f} %; {sum(row[-1] == OVER for row in planned)} over the budget after verification."
    )


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--models", nargs="+", choices=BATCHES, default=list(BATCHES))
    given = arguments.parse_args()
    holds = True
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.models:
            rows = []
            for batch in BATCHES[name]:
                profile = profile_of(name, batch, Path(temporary))
                for optimizer, budgets in BUDGETS.items():
                    for budget in budgets:
                        made = cell(name, batch, optimizer, budget, profile, Path(temporary))
                        rows.append(made.row() if made else [name, str(batch), optimizer, budget, "no plan fits", *[""] * 5])
                        holds = holds and (made is None or made.holds)
                        print("  ".join(rows[-1]), flush=True)
            every = with_those_of_others("cells", {name: rows}, BATCHES, PAGE)
            write_between("cells", f"{summary(every)} Made by `python -m bench.prediction`.", HEADINGS, every, PAGE)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
