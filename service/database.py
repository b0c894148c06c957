"""The database: engine, transactions, and migrations to the newest schema."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, sessionmaker

import migrations
from models import JobRecord

CHANNEL = "memfit_jobs"  # of Postgres: the ids of jobs that changed
ALONE = 0x6D656D666974  # advisory lock of whoever writes alone
# A client that is gone without a word does not keep its locks for ever.
POSTGRES: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "options": "-c lock_timeout=30s -c idle_in_transaction_session_timeout=60s",
}


class Database:
    """Hands out transactions. One request is one transaction; whoever opens it decides where it ends.

    Attributes:
        told: hear of jobs (`service.queue`) once what was written of them is committed; on Postgres, of those of other processes, too.
        topics: tell which jobs somebody waits to hear of, by id; for when the database was away.
    """

    def __init__(self, url: str) -> None:
        self.engine = connect(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._reading = sessionmaker(self.engine.execution_options(read_only=True))
        self.told: list[Callable[[JobRecord], None]] = []
        self.topics: list[Callable[[], Iterable[str]]] = []

    @property
    def shared(self) -> bool:
        """Whether other processes may work with it: a Postgres."""
        return self.engine.dialect.name == "postgresql"

    @contextmanager
    def transaction(self, alone: bool = True) -> Iterator[Session]:
        """A session that commits at the end of the block, and rolls back if it raises.

        `alone`: no other such transaction runs meanwhile, in any process, so what was read still holds when it is written. On SQLite
        every transaction that writes is alone.
        """
        with self._sessions.begin() as session:
            if alone and self.shared:
                session.execute(select(func.pg_advisory_xact_lock(ALONE)))
            yield session
        for job in changed(session):
            self.tell(job)

    def tell(self, job: JobRecord) -> None:
        for hear in self.told:
            hear(job)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads: it waits for no writer, and keeps none waiting."""
        with self._reading() as session:
            yield session

    def migrate(self) -> None:
        """Bring the schema to the newest revision."""
        with self.engine.begin() as connection:
            if self.shared:
                connection.execute(select(func.pg_advisory_xact_lock(ALONE)))
            upgrade(connection)

    def close(self) -> None:
        self.engine.dispose()


def mark_changed(session: Session, job: JobRecord) -> None:
    """A job was written of: after the commit, all who listen will hear of it."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_notify(CHANNEL, job.id)))
    else:
        session.info.setdefault(CHANNEL, []).append(job)


def changed(session: Session) -> list[JobRecord]:
    jobs: list[JobRecord] = session.info.pop(CHANNEL, [])
    return jobs


def connect(url: str) -> Engine:
    """An engine. SQLite gets a write-ahead log (readers do not wait for a writer), foreign keys, and waits for locks.

    Postgres is looked for again with every connection taken from the pool, so that its restart costs no request.
    """
    if not url.startswith("sqlite"):
        return create_engine(psycopg_url(url), pool_pre_ping=True, pool_size=20, max_overflow=20, pool_timeout=10, connect_args=POSTGRES)
    if file := make_url(url).database:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def psycopg_url(url: str) -> str:
    """The URL of a Postgres, however it is written, with the driver that is used."""
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


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
