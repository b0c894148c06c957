"""A Postgres of the tests' own: a new cluster in a temporary folder, on a free port of loopback, gone at the end."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import psycopg
import pytest

PLACES = (*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *sorted(Path("/opt/homebrew/opt").glob("postgresql*/bin")))
SETTINGS = {"fsync": "on", "listen_addresses": "127.0.0.1", "max_connections": "200", "log_min_messages": "fatal"}


def programs() -> Path | None:
    """Where Postgres's own programs are."""
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else next((place for place in PLACES if (place / "initdb").exists()), None)


needs_postgres = pytest.mark.skipif(programs() is None, reason="Postgres is not installed (apt-get install postgresql)")


@dataclass
class Postgres:
    """One server process, which can be killed and started again; what it committed stays."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://memfit@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        command = [str((programs() or Path()) / "postgres"), "-D", str(self.folder), "-p", str(self.port), "-k", ""]
        for name, value in SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **_as_user())
        deadline = monotonic() + 60
        while True:
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            assert monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            sleep(0.1)

    def kill(self) -> None:
        """As a power cut: the server and the processes of its connections."""
        assert self.process is not None
        os.killpg(self.process.pid, 9)
        for child in _children(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(child, 9)
        self.process.wait()


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A new cluster that runs."""
    place = programs()
    assert place is not None
    root = Path(tempfile.mkdtemp(prefix="memfit-postgres-"))
    try:
        if user := _as_user().get("user"):
            shutil.chown(root, user)
        folder = root / "cluster"
        command = [str(place / "initdb"), "-D", str(folder), "-U", "memfit", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, **_as_user())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = Postgres(folder, port)
        server.start()
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def new_database(server: Postgres) -> Iterator[str]:
    """The URL of an empty database of a server."""
    name = f"memfit_{os.urandom(6).hex()}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    yield server.url.replace("/postgres", f"/{name}")


def _as_user() -> dict[str, str]:
    """Postgres does not run as root."""
    if os.getuid():
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    return {"user": "postgres" if "postgres" in names else "nobody"}


def _children(pid: int) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(process.name))
    return found
