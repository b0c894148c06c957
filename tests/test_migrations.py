"""The migrations make the schema that the records declare, and undo it."""

import contextlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect

import migrations
from migrations.versions.v0007_procrastinate import MADE_FOR
from models import Record
from service.database import connect, downgrade, upgrade
from tests.service.postgres import Postgres, needs_postgres, new_database, postgres

PROCRASTINATE = (
    "SELECT tablename FROM pg_tables WHERE tablename LIKE 'procrastinate%%'",
    "SELECT proname FROM pg_proc WHERE proname LIKE 'procrastinate%%'",
    "SELECT typname FROM pg_type WHERE typname LIKE 'procrastinate%%'",
)
COMPARED = {
    "compare_type": True,
    "compare_server_default": True,
    "include_name": lambda name, kind, _: not (kind == "table" and name.startswith("procrastinate_")),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        engine = connect(f"sqlite:///{tmp_path / 'memfit.db'}")
        yield engine
        engine.dispose()
    else:
        with new_database(request.getfixturevalue("server")) as url:
            engine = connect(url)
            yield engine
            engine.dispose()


def test_the_newest_revision_is_what_the_records_declare(engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        context = MigrationContext.configure(connection, opts=COMPARED)
        assert compare_metadata(context, Record.metadata) == []


def test_every_revision_goes_down_and_up_again(engine: Engine) -> None:
    script = ScriptDirectory(str(Path(next(iter(migrations.__path__)))))
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert len(script.get_heads()) == 1
    with engine.begin() as connection:
        upgrade(connection)
    before = tables(engine)
    for revision in [*revisions[1:], "base"]:
        with engine.begin() as connection:
            downgrade(connection, revision)
    assert tables(engine) == {"alembic_version"}
    for revision in reversed(revisions):
        with engine.begin() as connection:
            upgrade(connection, revision)
    assert tables(engine) == before == {*Record.metadata.tables, "alembic_version"}


def test_an_upgrade_keeps_what_is_there(engine: Engine) -> None:
    """Rows of the first revision, with all that refers to them, are there after the newest, and after the way back."""
    rows = {
        "models": "'m', 5, '{}', '2026-01-01'",
        "samples": "'s', 6, '{}', '2026-01-01'",
        "jobs": "1, 'j', 'plan', 'p', 'queued', 'queued', 0.5, 'waiting', 2, NULL, '2026-01-01', NULL, NULL",
        "profiles": "'f', 'm', 's', 'mse', 'frozen', 8, 'ready', 'j', 'c', NULL, '2026-01-01'",
        "plans": "'p', 'f', 'j', 'queued', '{}', 64, NULL, NULL, NULL, NULL, '2026-01-01'",
    }
    with engine.begin() as connection:
        upgrade(connection, "0001")
        for table, values in rows.items():
            connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({values})")
    columns = {table: [column["name"] for column in inspect(engine).get_columns(table)] for table in rows}
    before = content(engine, columns)
    with engine.begin() as connection:
        upgrade(connection)
    renamed = columns | {"jobs": [{"starts": "attempt"}.get(name, name) for name in columns["jobs"]]}
    assert content(engine, renamed) == before
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT attempt, interruptions, queue FROM jobs").one() == (2, 1, "cpu")
        if engine.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        downgrade(connection, "0001")
    assert content(engine, columns) == before


def test_procrastinate_has_no_migration_after_ours() -> None:
    names = [file.name for file in (files("procrastinate") / "sql" / "migrations").iterdir() if file.name.endswith(".sql")]
    assert max(names)[: len(MADE_FOR)] <= MADE_FOR, "write a revision that runs the newer ones where they are missing"


@needs_postgres
def test_procrastinate_goes_down_with_its_revision(server: Postgres) -> None:
    with new_database(server) as url:
        engine = connect(url)
        with engine.begin() as connection:
            upgrade(connection)
            made = [sorted(connection.exec_driver_sql(query).scalars()) for query in PROCRASTINATE]
            assert all(made)
            downgrade(connection, "0006")
            assert [connection.exec_driver_sql(query).all() for query in PROCRASTINATE] == [[], [], []]
            upgrade(connection)
            assert [sorted(connection.exec_driver_sql(query).scalars()) for query in PROCRASTINATE] == made
        engine.dispose()


def test_an_upgrade_that_is_rolled_back_changes_nothing(engine: Engine) -> None:
    with contextlib.suppress(RuntimeError), engine.begin() as connection:
        upgrade(connection)
        assert inspect(connection).get_table_names()
        raise RuntimeError("power cut")
    assert tables(engine) == set()


def test_sqlite_is_set_up_for_many_readers_and_one_writer(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'memfit.db'}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()


def content(engine: Engine, columns: dict[str, list[str]]) -> dict[str, list[tuple[object, ...]]]:
    with engine.connect() as connection:
        return {
            table: [tuple(row) for row in connection.exec_driver_sql(f"SELECT {', '.join(names)} FROM {table}")]
            for table, names in columns.items()
        }


def tables(engine: Engine) -> set[str]:
    return {name for name in inspect(engine).get_table_names() if not name.startswith("procrastinate_")}
