"""The migrations make the schema that the records declare, and undo it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect

import migrations
from models import Record
from service.database import connect, downgrade, upgrade


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = connect(f"sqlite:///{tmp_path / 'memfit.db'}")
    yield engine
    engine.dispose()


def test_the_newest_revision_is_what_the_records_declare(engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
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


def test_an_upgrade_that_is_rolled_back_changes_nothing(engine: Engine) -> None:
    with contextlib.suppress(RuntimeError), engine.begin() as connection:
        upgrade(connection)
        assert inspect(connection).get_table_names()
        raise RuntimeError("power cut")
    assert tables(engine) == set()


def test_sqlite_is_set_up_for_many_readers_and_one_writer(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())
