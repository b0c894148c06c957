"""How long a footprint takes to predict, for 300 activations and every kind of schedule: `python -m bench.footprints`.

The time is that of the processor, for a timeline made anew and a plan's footprint at each of its moments.
"""

from statistics import median
from time import process_time

from planner.footprint import timeline
from planner.plan import Schedule
from planner.profile import Activation, Form, Holder, Operation, Option, Parameter, Profile, Step
from planner.request import Optimizer
from planner.timeline import exact_choices

ACTIVATIONS = 300
REPEATS = 9


def step_of(size: int) -> Step:
    """A chain of layers, each with a weight, an activation in two forms, and workspaces."""
    lossy = tuple(Option(name, {}, 100, 10, 10, {}, 1e-4) for name in ("hosvd", "int8", "int4", "coded"))
    return Step(
        size,
        tuple(Operation(f"op{i}", "op", (i - 1,) if i else (), (f"w{i}",), 100, 200, 8, None) for i in range(ACTIVATIONS + 1)),
        tuple(
            Activation(
                f"op{i}",
                i,
                (size, 10),
                "float32",
                40 * size,
                i,
                i + 1,
                (Holder(i + 1, "weight", f"w{i + 1}"), Holder(i + 1, "gradient")),
                (Form(f"op{i}", (0,), lossy), Form(f"mask{i}", (1,), (Option("mask", {}, 5, 5, 5, {}, 1e-4),))),
            )
            for i in range(ACTIVATIONS)
        ),
        tuple((40 * size, i, i + 1) for i in range(ACTIVATIONS)),
        {},
    )


def main() -> None:
    parameters = tuple(Parameter(f"w{i}", (10,), 40, 1.0) for i in range(ACTIVATIONS + 1))
    profile = Profile("graph", "mse", "frozen", 4000, parameters, (step_of(8), step_of(4)), ("op10", "op100"), 1 << 20, 1.0)
    trained = frozenset(parameter.name for parameter in parameters)
    for schedule in (
        Schedule(8),
        Schedule(8, early_updates=True),
        Schedule(4),
        Schedule(8, True, ("op10",), 4),
        Schedule(8, True, ("op10", "op100"), 4),
    ):
        choices = exact_choices(timeline(profile, Optimizer("adam"), schedule).step, trained)
        seconds = []
        for _ in range(REPEATS):
            started = process_time()
            timeline(profile, Optimizer("adam"), schedule).predict(choices)
            seconds.append(process_time() - started)
        print(f"{1e3 * median(seconds):.0f} ms (median of {REPEATS}, worst {1e3 * max(seconds):.0f} ms): {schedule}", flush=True)


if __name__ == "__main__":
    main()
