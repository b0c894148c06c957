"""`memfit keys`: who may call the service."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import select

from models import KeyRecord
from models.base import now
from service.database import Database
from service.keys import Scope, add_key
from service.settings import Settings

app = typer.Typer(name="keys", help="Keys for those who may call the service.", no_args_is_help=True)
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of all that is kept.", file_okay=False)]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is, for people.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, write or admin (all things of all keys); by default read and write.")
    ] = None,
    days: Annotated[int | None, typer.Option(help="How long it holds; by default for ever.", min=1)] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Most requests a minute.")] = None,
    active_jobs: Annotated[int | None, typer.Option(min=0, help="Most jobs that wait or run.")] = None,
    stored_bytes: Annotated[int | None, typer.Option(min=0, help="Most bytes of models and samples.")] = None,
    data: DataOption = None,
) -> None:
    """Make a key. Its secret is printed once, and kept nowhere."""
    scopes: list[Scope] = [each for each in ("read", "write", "admin") if each in (scope or ("read", "write"))]
    if unknown := set(scope or ()) - set(scopes):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: scopes are read, write and admin")
    expires_at = now() + timedelta(days=days) if days is not None else None
    limits = {"requests_per_minute": requests_per_minute, "active_jobs": active_jobs, "stored_bytes": stored_bytes}
    with _database(data) as database, database.transaction() as session:
        record, secret = add_key(session, name, tuple(scopes), expires_at, **limits)
    Console(stderr=True).print(f"The key of {record.name} ({record.id}). It is shown this once:", markup=False, soft_wrap=True)
    print(secret)


@app.command("list")
def list_keys(data: DataOption = None) -> None:
    """Show all keys, without their secrets."""
    table = Table("id", "name", "scopes", "made", "holds until")
    with _database(data) as database, database.reading() as session:
        for key in session.scalars(select(KeyRecord).order_by(KeyRecord.created_at)):
            until = (
                f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else f"{key.expires_at:%Y-%m-%d}" if key.expires_at else "for ever"
            )
            table.add_row(key.id, key.name, key.scopes, f"{key.created_at:%Y-%m-%d}", until)
    Console(width=None if Console().is_terminal else 140).print(table)


@app.command()
def revoke(id: Annotated[str, typer.Argument(help="The key's id, as `memfit keys list` shows it.")], data: DataOption = None) -> None:
    """Let a key hold no more, from the next second on."""
    with _database(data) as database, database.transaction() as session:
        record = session.get(KeyRecord, id)
        if record is None:
            Console(stderr=True).print(f"there is no key {id!r}. 'memfit keys list' shows all.", markup=False)
            raise typer.Exit(2)
        record.revoked_at = record.revoked_at or now()


@contextmanager
def _database(data: Path | None) -> Iterator[Database]:
    database = Database(Settings().model_copy(update={"data_dir": data} if data is not None else {}).url)
    database.migrate()
    try:
        yield database
    finally:
        database.close()
