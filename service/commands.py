"""What the command line does: the service's own pipeline, without a server."""

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
from service import key_commands, serve_commands, tables
from service.documents import MODEL_SUMMARY
from service.fit import check_trainable, settle
from service.intake.npz import is_npz, npz_as_safetensors
from service.pipeline import VerifiedPlan, measure, prove
from service.plans.answers import PlanContent, plan_content
from service.plans.requests import PlanBody
from service.problems import Problem, document_of
from service.progress_bars import ProgressBars
from service.sample_file import read_sample
from service.settings import Settings
from service.stage_process import Cancellation, StageProblem, Stages

WIDE = 120
FAILED, BAD_INPUT, INFEASIBLE = 1, 2, 3
app = typer.Typer(
    name="memfit", help="Plan the training of PyTorch models into a budget of memory.", no_args_is_help=True, add_completion=False
)
app.add_typer(key_commands.app)
app.add_typer(serve_commands.app)
ModelArgument = Annotated[
    Path, typer.Argument(help="A .pt2 file, as torch.export.save writes it.", exists=True, dir_okay=False, readable=True)
]
SampleArgument = Annotated[
    Path, typer.Argument(help="A safetensors or .npz file: inputs.0, … and targets.", exists=True, dir_okay=False, readable=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, as the service answers.")]


@app.command()
def inspect(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Show what a model takes, gives and holds."""
    with _problems_end_the_command(as_json), _stages() as stages:
        summary = stages.inspect(model, stages.folder / "program.pt2")
        if as_json:
            print(MODEL_SUMMARY.dump_json(summary, indent=2).decode())
        else:
            _console().print(tables.model_table(summary))


@app.command()
def plan(
    model: ModelArgument,
    sample: SampleArgument,
    budget: Annotated[str, typer.Option(help='Most bytes of a step at any moment: 64MiB, 67108864, or "40%" of the plain step\'s peak.')],
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "sgd",
    momentum: Annotated[float, typer.Option(help="Of sgd.")] = 0.0,
    loss: Annotated[str, typer.Option(help="cross_entropy, mse, or output:NAME of a model that returns its loss.")] = "cross_entropy",
    batch_norm: Annotated[str, typer.Option(help="frozen (running statistics) or batch (the batch's own).")] = "frozen",
    batch_size: Annotated[int | None, typer.Option(help="Samples a step; by default the whole sample.")] = None,
    trainable: Annotated[list[str] | None, typer.Option(help="Pattern of names of parameters that may train; may be repeated.")] = None,
    techniques: Annotated[list[str] | None, typer.Option(help="Pattern of techniques that may be used; may be repeated.")] = None,
    own_loop: Annotated[bool, typer.Option("--own-loop", help="Use only what lives in the module, for your own training loop.")] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The patched checkpoint; by default MODEL.memfit.pt2, here.", dir_okay=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Plan the training of MODEL on SAMPLE into a budget, prove it by a measured step, and write the patched checkpoint.

    Ends with 0 if the plan is ready, 2 if something given is wrong, 3 if no plan fits the budget, and 1 if anything else failed.
    """
    checkpoint = out or Path(f"{model.stem}.memfit.pt2")
    content = {
        "budget": budget,
        "optimizer": {"name": optimizer, "momentum": momentum},
        "loss": loss,
        "batch_norm": batch_norm,
        "batch_size": batch_size,
        "own_loop": own_loop,
        "trainable": trainable or ["*"],
        "techniques": techniques or ["*"],
    }
    with _problems_end_the_command(as_json):
        verified = _verified_plan(model, sample, PlanBody.read(content), checkpoint)
        if as_json:
            answer = plan_content(PlanState.READY, verified.plan.budget_bytes, verified.plan, verified.certificate, None)
            print(PlanContent(**answer).model_dump_json(indent=2))
        else:
            console = _console()
            console.print(tables.plan_table(verified.plan, verified.certificate, wide=console.width >= WIDE))
            console.print(f"The checkpoint is {checkpoint}: memfit.load({str(checkpoint)!r}) trains it.", soft_wrap=True)


def _verified_plan(model: Path, sample: Path, body: PlanBody, checkpoint: Path) -> VerifiedPlan:
    request = body.plan_request
    with _stages() as stages, ProgressBars(Console(stderr=True)) as bars:
        if is_npz(sample):
            npz_as_safetensors(sample, sample := stages.folder / "sample.safetensors", Settings().max_upload_bytes)
        sample_summary = read_sample(sample)
        summary = stages.inspect(model, program := stages.folder / "program.pt2")
        settings = settle(summary, sample_summary, body.settings)
        check_trainable(summary, request)
        profile = measure(stages, program, sample, settings, bars)
        verified = prove(stages, program, sample, profile, request, bars)
        _copy_whole(verified.checkpoint, checkpoint)
    return verified


def _console() -> Console:
    """Standard output: as wide as the terminal, or wide enough for everything where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


@contextmanager
def _stages() -> Iterator[Stages]:
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


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that the target is never half of it."""
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(source, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _problems_end_the_command(as_json: bool) -> Iterator[None]:
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
            console = Console(stderr=True)
            console.print(f"[bold red]{document.title}[/]: ", end="")
            console.print(document.detail, markup=False, highlight=False, soft_wrap=True)
            if infeasible:
                console.print(tables.infeasible_table(document.facts))
        raise typer.Exit(INFEASIBLE if infeasible else FAILED if document.status >= 500 else BAD_INPUT) from None
