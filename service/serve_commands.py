"""`memfit serve`, `api`, `worker` and `migrate`: the service, alone or on several machines."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from models import JobQueue
from service.database import Database
from service.settings import Settings

FAILED = 1
app = typer.Typer()
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of all that is kept.", file_okay=False)]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on.")]
PortOption = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)]


class WrongShape(RuntimeError):
    """The command is for a database of another kind."""


@app.command()
def serve(host: HostOption = None, port: PortOption = None, data: DataOption = None) -> None:
    """Run the service alone, on SQLite. Its database is migrated first; jobs that were running when it last stopped start again."""
    settings = _settings(host=host, port=port, data_dir=data)
    with _said_in_words():
        if settings.shared:
            raise WrongShape("DATABASE_URL names a Postgres. Run 'memfit api' and 'memfit worker', or unset it to serve alone.")
        _serve(settings)


@app.command()
def api(host: HostOption = None, port: PortOption = None, data: DataOption = None) -> None:
    """Answer requests, on the Postgres of DATABASE_URL; workers run the jobs. --data is for what is in progress, and copies."""
    settings = _settings(host=host, port=port, data_dir=data)
    with _said_in_words():
        _check_shared(settings)
        _serve(settings)


@app.command()
def worker(
    queue: Annotated[JobQueue, typer.Option(help="Whose jobs to run.")] = JobQueue.CPU,
    concurrency: Annotated[int, typer.Option(help="Jobs at a time; measured seconds are only comparable with one.", min=1)] = 1,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics, of what the stages here take.", min=1, max=65535)] = None,
    data: DataOption = None,
) -> None:
    """Run jobs, from the Postgres of DATABASE_URL. On SIGTERM, what runs goes back to the other workers."""
    from service import logs, tracing
    from service.cluster_worker import run

    settings = _settings(data_dir=data)
    with _said_in_words():
        _check_shared(settings)
        logs.set_up(settings.log_format)
        tracing.set_up()
        run(settings, queue, concurrency, metrics_port)


@app.command()
def migrate(data: DataOption = None) -> None:
    """Bring the database to the newest schema."""
    database = Database(_settings(data_dir=data).url)
    database.migrate()
    database.close()
    Console(stderr=True).print(f"{database.engine.url.render_as_string()} is up to date")


def _settings(**given: object) -> Settings:
    return Settings().model_copy(update={name: value for name, value in given.items() if value is not None})


def _check_shared(settings: Settings) -> None:
    if not settings.shared:
        raise WrongShape("this needs a Postgres: set DATABASE_URL=postgresql://…. 'memfit serve' needs none, and runs jobs itself.")


def _serve(settings: Settings) -> None:
    from service.keys import check_keys_for
    from service.outages import persistently
    from service.place import at_home
    from service.server import run

    with at_home(settings):
        database = Database(settings.url)
        persistently(database.migrate, lambda: None)
        with database.reading() as session:
            check_keys_for(session, settings.host)
        database.close()
        settings.confinement  # noqa: B018 - the server asks for all this itself; this is for a better word than a failed start gives
    run(settings)


@contextmanager
def _said_in_words() -> Iterator[None]:
    """What keeps a command from running, without a traceback."""
    from service.keys import NoKeys
    from service.place import DataInUse
    from service.sandbox import NoSandbox
    from service.tracing import NoTelemetry

    try:
        yield
    except (DataInUse, NoKeys, NoSandbox, NoTelemetry, WrongShape) as error:
        Console(stderr=True).print(str(error), markup=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None
