"""Charts of what the service answers, for the command line."""

from importlib.util import find_spec
from pathlib import Path

from service.frontiers import FrontierAnswer
from service.problems import InvalidRequest

MIB = 2**20


def check_plot(path: Path) -> None:
    """Before anything is measured that takes long.

    Raises:
        InvalidRequest: a suffix other than .png or .svg, or there is nothing to draw with.
    """
    if path.suffix not in (".png", ".svg"):
        raise InvalidRequest(f"{path.name} is neither a .png nor a .svg file. Name one of these.")
    if find_spec("matplotlib") is None:
        raise InvalidRequest("charts are drawn with matplotlib, which is not installed: pip install 'memfit[plot]'.")


def frontier_plot(answer: FrontierAnswer, path: Path) -> None:
    """Fidelity and time over the budget, as the kind of file that the path's suffix says."""
    from matplotlib.figure import Figure

    budgets = [point.budget_bytes / MIB for point in answer.points]
    figure = Figure(figsize=(8, 5), layout="constrained")
    fidelity, time = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    fidelity.fill_between(
        budgets,
        [point.score for point in answer.points],
        [point.bound for point in answer.points],
        alpha=0.2,
        label="not ruled out",
        step="post",
    )
    fidelity.step(budgets, [point.score for point in answer.points], where="post", marker="o", label="planned")
    fidelity.set_ylabel("fidelity")
    fidelity.set_ylim(-0.02, 1.04)
    fidelity.legend(loc="lower right")
    time.step(budgets, [point.slowdown for point in answer.points], where="post", marker="o", color="tab:orange")
    time.set_ylabel("plain steps of time")
    time.set_ylim(bottom=0)
    time.set_xlabel("budget (MiB)")
    for axes in (fidelity, time):
        axes.grid(alpha=0.3)
    figure.savefig(path)
