"""What every command of the command line is framed by: a console, stages in a temporary folder, problems in words or as JSON."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from models import PlanState
from planner.errors import InfeasibleBudget, PlannerError
from service import tables
from service.plans.answers import PlanContent, plan_content
from service.problems import Problem, document_of
from service.settings import Settings
from service.stage_process import Cancellation, StageProblem, Stages

WIDE = 120
FAILED, BAD_INPUT, INFEASIBLE = 1, 2, 3
ModelArgument = Annotated[
    Path, typer.Argument(help="A .pt2 file, as torch.export.save writes it.", exists=True, dir_okay=False, readable=True)
]
SampleArgument = Annotated[
    Path, typer.Argument(help="A safetensors or .npz file: inputs.0, … and targets.", exists=True, dir_okay=False, readable=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, as the service answers.")]


def console() -> Console:
    """Standard output: as wide as the terminal, or wide enough for everything where there is none."""
    made = Console()
    return made if made.is_terminal else Console(width=WIDE)


@contextmanager
def stages_here() -> Iterator[Stages]:
    """Stages in a temporary folder. The log stays where it is if a problem names it."""
    with tempfile.TemporaryDirectory(prefix="memfit-") as folder:
        (work := Path(folder, "work")).mkdir()
        log = Path(folder, "log")
        try:
            yield Stages(work, log, Cancellation(), Settings().confinement)
        except StageProblem as problem:
            if problem.names_log:
                kept = Path(tempfile.mkstemp(prefix="memfit-", suffix=".log")[1])
                shutil.copyfile(log, kept)
                raise problem.with_log(str(kept)) from None
            raise


@contextmanager
def problems_end_the_command(as_json: bool) -> Iterator[None]:
    """Say what is wrong and what to do, in words or as JSON, and end with the code for it."""
    try:
        yield
    except (Problem, PlannerError) as error:
        document = document_of(error)
        infeasible = isinstance(error, InfeasibleBudget)
        if as_json and isinstance(error, InfeasibleBudget):
            print(PlanContent(**plan_content(PlanState.INFEASIBLE, error.budget_bytes, None, None, document)).model_dump_json(indent=2))
        elif as_json:
            print(json.dumps(document.as_json(), indent=2))
        else:
            to_people = Console(stderr=True)
            to_people.print(f"[bold red]{document.title}[/]: ", end="")
            to_people.print(document.detail, markup=False, highlight=False, soft_wrap=True)
            if infeasible:
                to_people.print(tables.infeasible_table(document.facts))
        raise typer.Exit(INFEASIBLE if infeasible else FAILED if document.status >= 500 else BAD_INPUT) from None
