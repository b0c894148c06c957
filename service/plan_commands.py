"""The commands that plan: the service's own pipeline, without a server."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from models import PlanState
from planner.profile import Profile
from planner.request import PlanRequest
from service import tables
from service.command_frame import WIDE, JsonOption, ModelArgument, SampleArgument, console, problems_end_the_command, stages_here
from service.fit import check_trainable, settle
from service.frontiers import FrontierAnswer, FrontierPoint
from service.intake.npz import is_npz, npz_as_safetensors
from service.pipeline import measure, prove
from service.plans.answers import PlanContent, plan_content
from service.plans.requests import PlanBody, SettingsBody
from service.plot import check_plot, frontier_plot
from service.presets import PRESETS
from service.progress_bars import ProgressBars
from service.sample_file import read_sample
from service.settings import Settings
from service.stage_process import Stages

Optimizer = Annotated[str, typer.Option(help="sgd, adam or adamw.")]
Momentum = Annotated[float, typer.Option(help="Of sgd.")]
Loss = Annotated[str, typer.Option(help="cross_entropy, mse, or output:NAME of a model that returns its loss.")]
BatchNorm = Annotated[str, typer.Option(help="frozen (running statistics) or batch (the batch's own).")]
BatchSize = Annotated[int | None, typer.Option(help="Samples a step; by default the whole sample.")]
Trainable = Annotated[list[str] | None, typer.Option(help="Pattern of names of parameters that may train; may be repeated.")]
Frozen = Annotated[list[str] | None, typer.Option(help="Pattern of names of parameters that may not train; may be repeated.")]
Last = Annotated[int | None, typer.Option(help="Only the last so many layers may train.")]
Techniques = Annotated[list[str] | None, typer.Option(help="Pattern of techniques that may be used; may be repeated.")]
MaxSlowdown = Annotated[float | None, typer.Option(help="Most seconds of a step, in those of the plain step.")]
MinFidelity = Annotated[float | None, typer.Option(help="Least fidelity. Without a budget, the least budget that has it is planned.")]
Objective = Annotated[str, typer.Option(help="energy (of all gradients), or relative (each parameter counts alike).")]
OwnLoop = Annotated[bool, typer.Option("--own-loop", help="Use only what lives in the module, for your own training loop.")]


def plan(
    context: typer.Context,
    model: ModelArgument,
    sample: SampleArgument,
    budget: Annotated[
        str | None,
        typer.Option(help="Most bytes of a step at any moment: 64MiB, 67108864, \"40%\" of the plain step's peak, or a device's id."),
    ] = None,
    headroom: Annotated[str | None, typer.Option(help='Part of the budget to keep free: 2MiB, or "5%" of it.')] = None,
    budget_scope: Annotated[str, typer.Option(help="What the budget is of: training (the footprint) or process (all of it).")] = "training",
    optimizer: Optimizer = "sgd",
    momentum: Momentum = 0.0,
    loss: Loss = "cross_entropy",
    batch_norm: BatchNorm = "frozen",
    batch_size: BatchSize = None,
    trainable: Trainable = None,
    frozen: Frozen = None,
    last: Last = None,
    techniques: Techniques = None,
    max_slowdown: MaxSlowdown = None,
    min_fidelity: MinFidelity = None,
    objective: Objective = "energy",
    own_loop: OwnLoop = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The patched checkpoint; by default MODEL.memfit.pt2, here.", dir_okay=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Plan the training of MODEL on SAMPLE into a budget, prove it by a measured step, and write the patched checkpoint.

    Ends with 0 if the plan is ready, 2 if something given is wrong, 3 if no plan fits the budget, and 1 if anything else failed.
    """
    checkpoint = out or Path(f"{model.stem}.memfit.pt2")
    with problems_end_the_command(as_json):
        body = PlanBody.read(_content(context.params))
        with _profiled(model, sample, body, body.plan_request) as (stages, bars, program, tensors, profile):
            verified = prove(stages, program, tensors, profile, body.plan_request, bars)
            _copy_whole(verified.checkpoint, checkpoint)
        if as_json:
            answer = plan_content(PlanState.READY, verified.plan.budget_bytes, verified.plan, verified.certificate, None)
            print(PlanContent(**answer).model_dump_json(indent=2))
        else:
            shown = console()
            shown.print(tables.plan_table(verified.plan, verified.certificate, wide=shown.width >= WIDE))
            shown.print(f"The checkpoint is {checkpoint}: memfit.load({str(checkpoint)!r}) trains it.", soft_wrap=True)


def frontier(
    context: typer.Context,
    model: ModelArgument,
    sample: SampleArgument,
    points: Annotated[int, typer.Option(help="Budgets, from the least to the plain step's peak.", min=2, max=200)] = 24,
    optimizer: Optimizer = "sgd",
    momentum: Momentum = 0.0,
    loss: Loss = "cross_entropy",
    batch_norm: BatchNorm = "frozen",
    batch_size: BatchSize = None,
    trainable: Trainable = None,
    frozen: Frozen = None,
    last: Last = None,
    techniques: Techniques = None,
    max_slowdown: MaxSlowdown = None,
    objective: Objective = "energy",
    own_loop: OwnLoop = False,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this file: .png or .svg.", dir_okay=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is to be had of MODEL on SAMPLE at every budget: fidelity, time, and what changes. Predicted, not measured."""
    from planner.frontier import frontier as found  # the solver is slow to import, and the other commands do without
    from planner.solver import programs_for

    with problems_end_the_command(as_json):
        if plot is not None:
            check_plot(plot)
        body = PlanBody.read(_content(context.params) | {"budget": "100%"})
        with _profiled(model, sample, body, body.plan_request) as (_, bars, _, _, profile):

            def looked(part: float) -> None:
                bars.progress("solving", part, "looking along the frontier")

            made = found(programs_for(profile, body.plan_request), points, looked)
            answer = FrontierAnswer(points=tuple(map(FrontierPoint.of, made)))
        if plot is not None:
            frontier_plot(answer, plot)
        if as_json:
            print(answer.model_dump_json(indent=2))
        else:
            console().print(tables.frontier_table(answer))


def devices(as_json: JsonOption = False) -> None:
    """List the devices whose ids `--budget` takes, with what a training step may have of their memory."""
    if as_json:
        from service.devices import DeviceList, preset_answer  # with the web framework

        print(DeviceList(devices=tuple(map(preset_answer, PRESETS))).model_dump_json(indent=2))
    else:
        console().print(tables.devices_table(PRESETS))


def _content(given: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request as the service reads it, from the command's options. A device's id is the budget of that device."""
    content = {name: value for name, value in given.items() if name in PlanBody.model_fields and value not in (None, [], ())}
    content = {name: value for name, value in content.items() if name not in ("model", "sample")}
    content["optimizer"] = {"name": given["optimizer"], "momentum": given["momentum"]}
    for preset in PRESETS:
        if content.get("budget") == preset.id:
            content["budget"] = preset.budget_bytes
    return content


@contextmanager
def _profiled(
    model: Path, sample: Path, body: SettingsBody, request: PlanRequest
) -> Iterator[tuple[Stages, ProgressBars, Path, Path, Profile]]:
    """Stages, progress bars, the program, the sample's tensors, and the profile of both."""
    with stages_here() as stages, ProgressBars(Console(stderr=True)) as bars:
        if is_npz(sample):
            npz_as_safetensors(sample, sample := stages.folder / "sample.safetensors", Settings().max_upload_bytes)
        sample_summary = read_sample(sample)
        summary = stages.inspect(model, program := stages.folder / "program.pt2")
        settings = settle(summary, sample_summary, body.settings)
        check_trainable(summary, request)
        yield stages, bars, program, sample, measure(stages, program, sample, settings, bars)


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that the target is never half of it."""
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(source, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
