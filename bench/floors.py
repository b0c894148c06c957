"""How small a step without any loss can be: `python -m bench.floors` finds, for each model at batch 16, the least budget with fidelity 1,
proves it, measures it beside `torch.utils.checkpoint` on every block, and writes docs/floors.md.

`--models` does some, and leaves the rows of the others. All of one model is measured in one run, each in a process of its own.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import models
from bench.cells import Printing, mebibytes, stages
from bench.measure import MOMENTUM, Measurement, allocator_peak_bytes, measure
from bench.tables import with_those_of_others, write_between
from planner.errors import InfeasibleBudget, UnverifiedPlan
from planner.footprint import plain_timeline
from planner.plan import Plan
from planner.profile import Profile
from planner.request import Budget, Optimizer, PlanRequest, ProfileSettings
from service import pipeline

PAGE = Path("docs/floors.md")
BATCH, ROUNDS = 16, 4
MODELS = ("mobilenet_v2", "resnet_18", "resnet_50", "vit_tiny", "bert_4", "unet", "gpt")
OPTIMIZER = Optimizer("sgd", MOMENTUM)
HEADINGS = (
    *("model", "static", "plain", "step", "every block", "of plain", "step", "memfit in as much", "step"),
    *("memfit's least", "of plain", "step", "saved + transient", "of plain's", "schedule"),
)


@dataclass(frozen=True, slots=True)
class Exact:
    """A verified plan without loss, and its checkpoint."""

    plan: Plan
    checkpoint: Path


def exact(name: str, folder: Path, profile: Profile, budget_bytes: int | None) -> Exact | None:
    """A proved plan without loss in this budget, or the least there is; None where there is none."""
    kept = folder / f"{'least' if budget_bytes is None else 'alike'}.pt2"
    model, sample = folder / f"{name}.pt2", folder / f"{name}.safetensors"
    budget = None if budget_bytes is None else Budget(amount_bytes=budget_bytes)
    printing = Printing(f"{name} in {'the least' if budget_bytes is None else mebibytes(budget_bytes)}")
    with stages(folder / "log") as running:
        try:
            verified = pipeline.prove(running, model, sample, profile, PlanRequest(budget, OPTIMIZER, min_fidelity=1.0), printing)
        except (InfeasibleBudget, UnverifiedPlan):
            return None
        return Exact(verified.plan, verified.checkpoint.rename(kept))


def beyond_static(plan: Plan) -> int:
    """Most bytes of saved activations and workspace at any moment, as predicted (the peak of the whole is measured)."""
    return max(footprint.saved_bytes + footprint.transient_bytes for footprint in plan.timeline)


def plain_beyond_static(profile: Profile) -> int:
    """The same of the plain step: measured bytes of each moment without parameters, buffers, gradients and batch."""
    static = {footprint.moment: footprint.static_bytes for footprint in plain_timeline(profile)}
    return max(each.live_bytes - static[each.moment] for each in profile.plain if each.moment in static)


def in_turns(steps: dict[str, partial[Measurement]]) -> dict[str, Measurement]:
    """Each step measured `ROUNDS` times, one after the other, of which the quickest counts: whatever else the machine does only adds."""
    rounds = [{of: step() for of, step in steps.items()} for _ in range(ROUNDS)]
    return {of: min((each[of] for each in rounds), key=lambda each: each.step_seconds) for of in steps}


def row(name: str, folder: Path) -> list[str]:
    models.export(name, folder / f"{name}.pt2")
    sample = folder / f"{name}.safetensors"
    models.write_sample(name, sample, BATCH)
    settings = ProfileSettings(models.CASES[name].loss, batch_size=BATCH)
    with stages(folder / "log") as running:
        profile = pipeline.measure(running, folder / f"{name}.pt2", sample, settings, Printing(name))
    alike = exact(name, folder, profile, allocator_peak_bytes(name, sample, blocks=True))
    least = exact(name, folder, profile, None)
    steps = {"plain": partial(measure, name, sample), "blocks": partial(measure, name, sample, blocks=True)}
    steps |= {of: partial(measure, name, sample, each.checkpoint) for of, each in (("alike", alike), ("least", least)) if each}
    measured = in_turns(steps)
    plain, blocks, of_alike, of_least = (measured.get(of) for of in ("plain", "blocks", "alike", "least"))
    assert plain is not None and blocks is not None
    states = OPTIMIZER.states * sum(p.bytes for p in profile.parameters)

    def cells(measured: Measurement | None) -> list[str]:
        return [mebibytes(measured.allocator_peak_bytes), f"{measured.step_seconds:.2f} s"] if measured else ["", ""]

    def share(part: int, whole: int) -> str:
        return f"{100 * part / whole:.1f} %"

    of_plain = plain.allocator_peak_bytes
    first = [name, mebibytes(profile.static_bytes + states), *cells(plain)]
    block_peak, block_step = cells(blocks)
    first += [block_peak, share(blocks.allocator_peak_bytes, of_plain), block_step, *cells(of_alike)]
    if least is None or of_least is None:
        return [*first, *[""] * 6]
    peak, step = cells(of_least)
    beyond, plain_beyond = beyond_static(least.plan), plain_beyond_static(profile)
    return [
        *first,
        peak,
        share(of_least.allocator_peak_bytes, of_plain),
        step,
        mebibytes(beyond),
        share(beyond, plain_beyond),
        str(least.plan.schedule),
    ]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    given = arguments.parse_args()
    for name in given.models:
        with tempfile.TemporaryDirectory() as temporary:
            made = row(name, Path(temporary))
        print("  ".join(made), flush=True)
        rows = with_those_of_others("floors", {name: [made]}, MODELS, PAGE)
        write_between("floors", "Made by `python -m bench.floors`.", HEADINGS, rows, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
