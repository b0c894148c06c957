"""The service on several processes: `memfit api` and `memfit worker`s on a Postgres, each a process that can be killed."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.service.running import ROOT, until

STALLED_SECONDS = 3


@dataclass
class Member:
    """A process of the service, by the command that starts it."""

    arguments: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "service.cli", *self.arguments]
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(30)

    def restart(self) -> None:
        """Kill it, and begin anew."""
        self.end()
        self.start()

    @property
    def said(self) -> str:
        return self.log.read_text()


@dataclass
class Clustered:
    """Processes on one database, and a client of their API."""

    folder: Path
    environment: dict[str, str]
    port: int
    members: list[Member] = field(default_factory=list)

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def add(self, *arguments: str) -> Member:
        """Start a process more."""
        log = self.folder / f"{arguments[0]}-{len(self.members)}.log"
        member = Member([*arguments, "--data", str(self.folder / "data")], self.environment, log)
        self.members.append(member)
        member.start()
        return member

    def add_api(self) -> Member:
        member = self.add("api", "--port", str(self.port))
        self.wait_for_api()
        return member

    def add_alone(self) -> Member:
        """The program that is all in one."""
        member = self.add("serve", "--port", str(self.port))
        self.wait_for_api()
        return member

    def add_worker(self, *arguments: str) -> Member:
        return self.add("worker", *arguments)

    def wait_for_api(self) -> None:
        with self.client as client:
            until(lambda: answers(client))


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def clustered(folder: Path, database_url: str | None, **settings: str) -> Iterator[Clustered]:
    """No process yet; all that are added are gone after the block. Without a database, for the program that is all in one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MEMFIT_STALLED_SECONDS": str(STALLED_SECONDS), "MEMFIT_LOG_FORMAT": "json"}
    if database_url is not None:
        environment["DATABASE_URL"] = database_url
    service = Clustered(folder, environment | settings, port)
    try:
        yield service
    finally:
        for member in service.members:
            if member.process is not None and member.process.poll() is None:
                member.end()


def errors_of(member: Member) -> list[str]:
    """Tracebacks and errors in what a process said."""
    return re.findall(r".*(?:Traceback|\"level\": \"error\").*", member.said)
