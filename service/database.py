"""The database: engine, transactions, and migrations to the newest schema."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, sessionmaker

import migrations


class Database:
    """Hands out transactions. One request is one transaction; whoever opens it decides where it ends."""

    def __init__(self, url: str) -> None:
        self.engine = connect(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits at the end of the block, and rolls back if it raises."""
        with self._sessions.begin() as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads: it waits for no writer, and keeps none waiting."""
        with self._sessions(bind=self.engine.execution_options(read_only=True)) as session:
            yield session

    def migrate(self) -> None:
        """Bring the schema to the newest revision."""
        with self.engine.begin() as connection:
            upgrade(connection)

    def close(self) -> None:
        self.engine.dispose()


def connect(url: str) -> Engine:
    """An engine. SQLite gets a write-ahead log (readers do not wait for a writer), foreign keys, and waits for locks."""
    if (file := make_url(url).database) and url.startswith("sqlite"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    return engine


def upgrade(connection: Connection, revision: str = "head") -> None:
    alembic.command.upgrade(_alembic_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    alembic.command.downgrade(_alembic_config(connection), revision)


def _alembic_config(connection: Connection) -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(next(iter(migrations.__path__)))))
    config.attributes["connection"] = connection
    return config


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin_immediate`, not by the driver
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail, not wait, if another wrote in between: it locks at once.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
