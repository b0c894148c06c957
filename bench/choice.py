"""How long a choice takes and how close to the best it is proved: `python -m bench.choice` writes two tables of docs/results.md.

Twenty budgets of each model, from the least that anything fits to nearly the plain peak, with momentum and all techniques; then a frontier
of 24 points. Beside that the dynamic programme over layers and bins of memory of the ASI paper ("Beyond Low-rank Decomposition: A
Shortcut Approach for Efficient On-Device Learning", 2025), on the one problem it can express: bytes of the layers' inputs, one ε each.

Profiles are measured first, which takes minutes; `--profiles FOLDER` keeps them there for the next time.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from bench.prediction import profile_of
from bench.tables import write_between
from planner.errors import InfeasibleBudget
from planner.frontier import frontier
from planner.profile import Option, Profile, Step
from planner.request import Budget, Optimizer, PlanRequest
from planner.schedules import Programs
from planner.search import least_peak, limits_of
from planner.solver import best_plan, plain_peak_bytes, programs_for, solve
from planner.trainable import layers as layers_of
from planner.trainable import weights
from service.documents import PROFILE

MODELS = ("mobilenet_v2", "resnet_50", "vit_b")
BATCH, BUDGETS, POINTS = 8, 20, 24
OPTIMIZER = Optimizer("sgd", 0.9)
SHARES = (0.5, 0.25, 0.1)  # of the layers' inputs, or of the plain peak
BINS = 500


def stored_profile(name: str, folder: Path) -> Profile:
    kept = folder / f"{name}.profile.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as work:
            kept.write_bytes(PROFILE.dump_json(profile_of(name, BATCH, Path(work))))
    return PROFILE.validate_json(kept.read_bytes())


@dataclass(frozen=True, slots=True)
class Solved:
    """One budget: seconds to the first answer, with its programs made anew and with those that the service keeps; from there on to one
    whose gap is within 0.1 % or whose time is up; and that gap.
    """

    anew: float
    first: float
    searched: float
    gap: float


def solved(programs: Programs, budget_bytes: int) -> Solved | None:
    request = PlanRequest(Budget(amount_bytes=budget_bytes), OPTIMIZER)
    try:
        started = perf_counter()
        solve(programs.profile, request, search_seconds=0)
        anew = perf_counter() - started
        first = best_plan(programs.within(request), search_seconds=0)
        searched = best_plan(programs.within(request))
    except InfeasibleBudget:
        return None
    return Solved(anew, first.solve_seconds, searched.solve_seconds, searched.gap)


def budgets(programs: Programs) -> Iterator[int]:
    plain = plain_peak_bytes(programs.profile, OPTIMIZER)
    smallest = least_peak(programs, limits_of(programs, plain))
    assert smallest is not None
    for n in range(1, BUDGETS + 1):
        yield smallest[1] + (plain - smallest[1]) * n // (BUDGETS + 1)


def options(profile: Profile) -> tuple[list[int], list[int]]:
    """How many options there are for each form of what layers read, and of what other operations hold."""
    step, of = profile.whole, set(layers_of(profile))
    found: tuple[list[int], list[int]] = ([], [])
    for activation in step.activations:
        for form in activation.forms:
            if form.options:
                found[not any(activation.holders[h].operation in of for h in form.holders)].append(len(form.options))
    return found


def choice_row(name: str, profile: Profile, found: list[Solved]) -> list[str]:
    of_layers, of_others = options(profile)
    started = perf_counter()
    points = list(frontier(programs_for(profile, PlanRequest(None, OPTIMIZER)), POINTS))
    seconds = perf_counter() - started
    assert len(points) == POINTS
    return [
        name,
        f"{len(profile.whole.activations)}",
        f"{median(of_layers):.0f}",
        f"{median(of_others):.0f}",
        *solved_cells(found),
        f"{seconds:.1f}",
    ]


def solved_cells(found: list[Solved]) -> list[str]:
    anew, first, searched, gaps = ([getattr(each, field) for each in found] for field in ("anew", "first", "searched", "gap"))
    seconds = [f"{median(each):.2f} / {max(each):.2f}" for each in (anew, first, searched)]
    return [*seconds, f"{sum(gap <= 1e-3 for gap in gaps)} of {len(found)}", f"{100 * max(gaps):.1f} %"]


# ---- the dynamic programme, on layers alone


@dataclass(frozen=True, slots=True)
class Layer:
    """The input of one layer: whole, and in HOSVD at several ε."""

    activation: int
    form: int
    bytes: tuple[int, ...]
    lost: tuple[float, ...]
    options: tuple[int | None, ...]


def layers(step: Step) -> list[Layer]:
    made = []
    for a, activation in enumerate(step.activations):
        for f, form in enumerate(activation.forms):
            menu: list[tuple[int | None, Option]] = [(o, option) for o, option in enumerate(form.options) if option.technique == "hosvd"]
            if menu:
                held = (activation.bytes, *(option.held_bytes for _, option in menu))
                lost = (0.0, *(sum(option.lost_energy.values()) for _, option in menu))
                made.append(Layer(a, f, held, lost, (None, *(o for o, _ in menu))))
    return made


def dynamic_programme(menu: list[Layer], budget_bytes: float) -> tuple[float, list[int]] | None:
    """Least lost energy with the layers' bytes within the budget, in bins: table over (layer, bin). Bytes are rounded up to bins."""
    width = budget_bytes / BINS
    best = np.zeros(BINS + 1)
    taken: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    for layer in menu:
        after, choice = np.full(BINS + 1, np.inf), np.zeros(BINS + 1, dtype=np.int64)
        for o, (size, lost) in enumerate(zip(layer.bytes, layer.lost, strict=True)):
            bins = int(np.ceil(size / width))
            if bins <= BINS:
                candidate = np.concatenate([np.full(bins, np.inf), best[: BINS + 1 - bins] + lost])
                choice[candidate < after] = o
                after = np.minimum(after, candidate)
        best = after
        taken.append(choice)
    if not np.isfinite(best[BINS]):
        return None
    at, picked = BINS, []
    for layer, choice in zip(reversed(menu), reversed(taken), strict=True):
        picked.append(int(choice[at]))
        at -= int(np.ceil(layer.bytes[picked[-1]] / width))
    return float(best[BINS]), picked[::-1]


def compared(name: str, profile: Profile) -> Iterator[list[str]]:
    """The dynamic programme and the planner at the same share: of the layers' inputs for the one, of the plain peak for the other."""
    plain = plain_peak_bytes(profile, OPTIMIZER)
    request = PlanRequest(None, OPTIMIZER, techniques=("hosvd",), own_loop=True)
    (program,) = Programs(profile, request, weights(profile, request))
    menu = layers(program.timeline.step)
    total = sum(parameter.gradient_energy for parameter in profile.parameters)
    for share in SHARES:
        started = perf_counter()
        found = dynamic_programme(menu, share * sum(layer.bytes[0] for layer in menu))
        seconds = perf_counter() - started
        fidelity = peak = "none"
        if found is not None:
            columns = {option: program.rows.at.options + n for n, option in enumerate(program.rows.at.chosen)}
            picked = zip(menu, found[1], strict=True)
            held = [columns[layer.activation, layer.form, o] for layer, pick in picked if (o := layer.options[pick]) is not None]
            choices = program.choices_with(program.weight, held)
            fidelity, peak = f"{1 - found[0] / total:.4f}", f"{100 * program.timeline.peak_bytes(choices) / plain:.0f} %"
        try:
            plan = solve(profile, PlanRequest(Budget(share=share), OPTIMIZER))
            ours = [f"{plan.fidelity:.4f}", f"{100 * plan.predicted_peak_bytes / plain:.0f} %", f"{plan.solve_seconds:.2f}"]
        except InfeasibleBudget as error:
            ours = ["none", f"least {100 * error.least_budget_bytes / plain:.0f} %", ""]
        yield [name, f"{100 * share:.0f} %", fidelity, peak, f"{seconds:.2f}", *ours]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profiles", type=Path)
    given = parser.parse_args()
    rows: list[list[str]] = []
    beside: list[list[str]] = []
    all_found: list[Solved] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.profiles or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in MODELS:
            profile = stored_profile(name, folder)
            programs = programs_for(profile, PlanRequest(None, OPTIMIZER))
            found = [each for budget_bytes in budgets(programs) if (each := solved(programs, budget_bytes)) is not None]
            all_found += found
            rows.append(choice_row(name, profile, found))
            beside += compared(name, profile)
            print(*rows[-1], sep="  ", flush=True)
    rows.append(["all", "", "", "", *solved_cells(all_found), ""])
    write_between(
        "choice",
        f"`python -m bench.choice`: {BUDGETS} budgets each, from the least to the plain peak, momentum. Seconds are median / worst; the "
        "programs are made anew for each budget, or kept from one to the next, as the service does.",
        [
            *(
                "model",
                "activations",
                "options of a layer's input",
                "of what others hold",
                "first answer, made anew",
                "programs kept",
                "searched",
                "gap ≤ 0.1 %",
                "worst gap",
            ),
            f"frontier of {POINTS} points, s",
        ],
        rows,
    )
    write_between(
        "layers",
        "`python -m bench.choice`: the dynamic programme over layers and bins, given a share of the bytes of the layers' inputs, and the "
        "planner, given that share of the plain peak. Both peaks are of the whole step, as predicted.",
        ["model", "share", "fidelity, layers", "peak", "s", "fidelity, planner", "peak", "s"],
        beside,
    )


if __name__ == "__main__":
    main()
