"""The demo's one table."""

from rich.table import Table

from demo.finetune import Method, Outcome

NAMES: dict[Method, str] = {"plain": "plain training", "memfit": "memfit", "last-layer": "last layer only"}


def mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"


def table(outcomes: dict[Method, Outcome], budget_bytes: int) -> Table:
    """Peak, budget, accuracy and time of each method."""
    rows = Table(title="Fine-tuning on the device's digits", title_justify="left")
    rows.add_column("method")
    for heading in ("measured peak", "budget", "accuracy before", "accuracy after", "seconds a step"):
        rows.add_column(heading, justify="right")
    for method, outcome in outcomes.items():
        fits = outcome.peak_bytes <= budget_bytes
        rows.add_row(
            NAMES[method],
            f"[{'green' if fits else 'red'}]{mebibytes(outcome.peak_bytes)}[/]",
            mebibytes(budget_bytes),
            f"{outcome.accuracy_before:.1%}",
            f"{outcome.accuracy_after:.1%}",
            f"{outcome.step_seconds:.3f}",
            style="bold" if method == "memfit" else "",
        )
    return rows
