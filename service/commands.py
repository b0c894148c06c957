"""What the command line does: the service's own pipeline, without a server."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service import key_commands, plan_commands, tables
from service.command_frame import FAILED, JsonOption, ModelArgument, console, problems_end_the_command, stages_here
from service.database import Database
from service.documents import MODEL_SUMMARY
from service.settings import Settings

app = typer.Typer(
    name="memfit", help="Plan the training of PyTorch models into a budget of memory.", no_args_is_help=True, add_completion=False
)
app.add_typer(key_commands.app)
app.command()(plan_commands.plan)
app.command()(plan_commands.frontier)
app.command()(plan_commands.devices)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of all that is kept.", file_okay=False)] = None,
) -> None:
    """Run the service. Its database is migrated first; jobs that were running when it last stopped start again."""
    from service.app import DataInUse, owning  # the web framework is slow to import, and the other commands do without
    from service.keys import NoKeys, check_keys_for
    from service.sandbox import NoSandbox
    from service.server import run

    given = {"host": host, "port": port, "data_dir": data}
    settings = Settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    try:
        with owning(settings.data_dir):
            database = Database(settings.url)
            database.migrate()
            with database.reading() as session:
                check_keys_for(session, settings.host)
            database.close()
            settings.confinement  # noqa: B018 - the server asks for both itself; this is for a better word than a failed start gives
    except (DataInUse, NoKeys, NoSandbox) as error:
        Console(stderr=True).print(str(error), markup=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None
    run(settings)


@app.command()
def migrate(data: Annotated[Path | None, typer.Option(help="Folder of all that is kept.", file_okay=False)] = None) -> None:
    """Bring the database to the newest schema."""
    settings = Settings().model_copy(update={"data_dir": data} if data is not None else {})
    database = Database(settings.url)
    database.migrate()
    database.close()
    Console(stderr=True).print(f"{database.engine.url.render_as_string()} is up to date")


@app.command()
def inspect(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Show what a model takes, gives and holds."""
    with problems_end_the_command(as_json), stages_here() as stages:
        summary = stages.inspect(model, stages.folder / "program.pt2")
        if as_json:
            print(MODEL_SUMMARY.dump_json(summary, indent=2).decode())
        else:
            console().print(tables.model_table(summary))
