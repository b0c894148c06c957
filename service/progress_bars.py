"""Shows on a terminal how far a plan is; says nothing elsewhere."""

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from planner.plan import Plan
from service.pipeline import Stage


class ProgressBars:
    """An observer of the pipeline: one bar a stage, a new one for each further attempt."""

    def __init__(self, console: Console) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[message]}"),
        )
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._stage: Stage | None = None
        self._bar: TaskID | None = None

    def __enter__(self) -> "ProgressBars":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._complete()
        self._bars.stop()

    def progress(self, stage: Stage, fraction: float, message: str) -> None:
        if stage != self._stage or self._bar is None:
            self._complete()
            self._stage, self._bar = stage, self._bars.add_task(stage, total=1.0, message=message)
        self._bars.update(self._bar, completed=fraction, message=message)

    def solved(self, plan: Plan) -> None:
        """The bar of the next stage follows at once."""

    def _complete(self) -> None:
        if self._bar is not None:
            self._bars.update(self._bar, completed=1.0, message="")
