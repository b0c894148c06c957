"""Plans every model of the benchmark at every budget, measures each checkpoint by itself, and writes docs/results.md.

`python -m bench.cells --models resnet_18 --budgets 50% 25%` does a part of it, and leaves the rows of other models. The plans come from the
code of service and command line; the measurements share nothing with it (`bench.measure`).
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import models
from bench.measure import MOMENTUM, Measurement, measure
from bench.tables import RESULTS, with_those_of_others, write_between
from planner.errors import InfeasibleBudget, UnverifiedPlan
from planner.plan import Plan
from planner.profile import Profile
from planner.request import Optimizer, PlanRequest, ProfileSettings, parse_budget
from service import pipeline
from service.stage_process import Cancellation, Stages

MODELS = ("mobilenet_v2", "resnet_18", "vit_tiny", "bert_4")
BUDGETS = ("75%", "50%", "35%", "25%", "1MiB")  # the last is too little for any: the answer says where the floor lies
HEADINGS = ("model", "budget", "bytes", "answer", "peak", "growth", "fidelity", "trained", "step", "solve")


@dataclass(frozen=True, slots=True)
class Cell:
    """One model at one budget: a verified plan with its own measurement, or why there is none."""

    model: str
    budget: str
    answer: pipeline.VerifiedPlan | InfeasibleBudget | UnverifiedPlan
    measured: Measurement | None

    @property
    def holds(self) -> bool:
        """Whether the measured peak, if there is a plan, is inside the budget."""
        if isinstance(self.answer, UnverifiedPlan):
            return False
        if isinstance(self.answer, InfeasibleBudget) or self.measured is None:
            return True
        budget_bytes = self.answer.plan.budget_bytes
        return max(self.measured.allocator_peak_bytes, self.measured.process_growth_bytes) <= budget_bytes


class Printing:
    """Tells on the terminal how far the pipeline is."""

    def __init__(self, name: str) -> None:
        self.name, self.last = name, ""

    def progress(self, stage: pipeline.Stage, fraction: float, message: str) -> None:
        if stage != self.last:
            print(f"  {self.name}: {stage}", flush=True)
        self.last = stage

    def solved(self, plan: Plan) -> None:
        print(f"  {self.name}: fidelity {plan.fidelity:.4f}, predicted {mebibytes(plan.predicted_peak_bytes)}", flush=True)


@contextmanager
def stages(log: Path) -> Iterator[Stages]:
    with tempfile.TemporaryDirectory() as folder:
        yield Stages(Path(folder), log, Cancellation())


def profile_model(name: str, folder: Path) -> Profile:
    """Write the model and its sample to `folder`, and measure them."""
    case = models.CASES[name]
    models.export(name, folder / f"{name}.pt2")
    models.write_sample(name, folder / f"{name}.safetensors")
    settings = ProfileSettings(loss=case.loss, batch_size=case.batch)
    with stages(folder / "log") as running:
        return pipeline.measure(running, folder / f"{name}.pt2", folder / f"{name}.safetensors", settings, Printing(name))


def cell(name: str, folder: Path, profile: Profile, budget: str) -> Cell:
    """Plan, patch, verify; then measure the checkpoint again in processes of its own."""
    model, sample = folder / f"{name}.pt2", folder / f"{name}.safetensors"
    request = PlanRequest(parse_budget(budget), Optimizer("sgd", MOMENTUM))
    with stages(folder / "log") as running:
        try:
            verified = pipeline.prove(running, model, sample, profile, request, Printing(f"{name} at {budget}"))
        except (InfeasibleBudget, UnverifiedPlan) as error:
            return Cell(name, budget, error, None)
        return Cell(name, budget, verified, measure(name, sample, verified.checkpoint))


def row(cell: Cell) -> list[str]:
    """A line of the table."""
    match cell.answer:
        case InfeasibleBudget() as error:
            bound = f"{error.binding.get('phase')} of {error.binding.get('operation')}"
            answer = f"infeasible: needs {mebibytes(error.least_budget_bytes)}, at {bound}"
            return [cell.model, cell.budget, mebibytes(error.budget_bytes), answer, *[""] * 6]
        case UnverifiedPlan() as error:
            return [cell.model, cell.budget, "", f"not verified: {error}", *[""] * 6]
        case verified:
            assert cell.measured is not None
            plan = verified.plan
            trained = [parameter for parameter in plan.parameters if parameter.trained]
            return [
                cell.model,
                cell.budget,
                mebibytes(plan.budget_bytes),
                "ready" if cell.holds else "**over the budget**",
                mebibytes(cell.measured.allocator_peak_bytes),
                mebibytes(cell.measured.process_growth_bytes),
                f"{verified.certificate.fidelity:.4f}",
                f"{len(trained)} of {len(plan.parameters)}",
                f"{cell.measured.step_seconds:.2f} s",
                f"{plan.solve_seconds:.2f} s",
            ]


def plain_row(name: str, measured: Measurement) -> list[str]:
    peak, growth = mebibytes(measured.allocator_peak_bytes), mebibytes(measured.process_growth_bytes)
    return [name, "", "", "plain step", peak, growth, "1", "all", f"{measured.step_seconds:.2f} s", ""]


def mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--models", nargs="+", choices=models.CASES, default=list(MODELS))
    arguments.add_argument("--budgets", nargs="+", default=list(BUDGETS), help="as in a request: 50%%, 64MiB")
    given = arguments.parse_args()
    cells = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in given.models:
            profile = profile_model(name, folder)
            rows = [plain_row(name, measure(name, folder / f"{name}.safetensors"))]
            for budget in given.budgets:
                cells.append(cell(name, folder, profile, budget))
                rows.append(row(cells[-1]))
            write_between("cells", "Made by `python -m bench.cells`.", HEADINGS, with_those_of_others("cells", {name: rows}, MODELS))
    print(f"wrote {RESULTS}")
    return 0 if all(cell.holds for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
