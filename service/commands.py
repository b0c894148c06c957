"""What the command line does: the service's own pipeline, without a server."""

import typer

from service import key_commands, plan_commands, serve_commands, tables
from service.command_frame import JsonOption, ModelArgument, console, problems_end_the_command, stages_here
from service.documents import MODEL_SUMMARY

app = typer.Typer(
    name="memfit", help="Plan the training of PyTorch models into a budget of memory.", no_args_is_help=True, add_completion=False
)
app.add_typer(key_commands.app)
app.add_typer(serve_commands.app)
app.command()(plan_commands.plan)
app.command()(plan_commands.frontier)
app.command()(plan_commands.devices)


@app.command()
def inspect(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Show what a model takes, gives and holds."""
    with problems_end_the_command(as_json), stages_here() as stages:
        summary = stages.inspect(model, stages.folder / "program.pt2")
        if as_json:
            print(MODEL_SUMMARY.dump_json(summary, indent=2).decode())
        else:
            console().print(tables.model_table(summary))
