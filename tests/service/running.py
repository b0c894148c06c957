"""The real service, on a port of its own, and what one asks of it."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import httpx

from service.context import Context
from service.server import Server
from service.settings import Settings
from service.store import Kind, Store

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # seconds: what has not come by then, on a busy machine too, will not come
FINISHED = {"ready", "infeasible", "failed", "cancelled"}


@dataclass(frozen=True)
class Running:
    """A service that runs, and a client of it."""

    server: Server
    client: httpx.Client

    @property
    def context(self) -> Context:
        context: Context = self.server.app.state.context
        return context

    def connect(self, timeout_seconds: float | None = None) -> socket.socket:
        """A connection of its own, to send what no client would."""
        host, port = self.server.address.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout_seconds)

    def until(self, path: str, found: Callable[[dict[str, Any]], bool], seconds: float = PATIENCE) -> dict[str, Any]:
        """Ask again and again until the answer is as wanted."""
        deadline = monotonic() + seconds
        while True:
            answer: dict[str, Any] = self.client.get(path).raise_for_status().json()
            if found(answer):
                return answer
            assert monotonic() < deadline, f"still {answer.get('state')} after {seconds} s: {answer}"
            sleep(0.02)

    def files(self) -> set[str]:
        """All that is kept, or was left behind, beside the database, its lock and the logs of jobs."""
        root = self.context.store.root
        return {
            str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and not path.name.startswith(("memfit.db", "lock"))
        }


def keep(store: Store, kind: Kind, data: bytes) -> str:
    """Keep bytes; their digest."""
    with store.draft(kind) as draft:
        draft.write(data)
        draft.finish()
        store.keep(kind, draft.path, draft.digest)
        return draft.digest


@contextmanager
def running(data_dir: Path, **settings: Any) -> Iterator[Running]:
    server = Server(Settings(data_dir=data_dir, port=0, **settings))
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            sleep(0.01)
        with httpx.Client(base_url=server.address, timeout=60) as client:
            yield Running(server, client)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def serving(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """The service as `memfit serve` runs it, in a process of its own."""
    command = [sys.executable, "-m", "service.cli", "serve", "--data", str(data_dir), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            address = next(match[0] for line in process.stderr if (match := re.search(r"http://[\d.]+:\d+", line)))
            Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would make the server wait
            with httpx.Client(base_url=address, timeout=60) as client:
                yield process, client
        finally:
            process.kill()


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The document of an answer that must be one."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document: dict[str, Any] = answer.json()
    assert (answer.status_code, document["status"], document["type"]) == (status, status, f"/problems/{kind}"), document
    assert document["title"]
    assert document["detail"].endswith("."), "an error says what to do next"
    return document


def post_plan(service: Running, request: Any, model: bytes, sample: bytes) -> httpx.Response:
    text = request if isinstance(request, str) else json.dumps(request)
    return service.client.post("/v1/plans", files={"request": (None, text), "model": ("m.pt2", model), "sample": ("s.safetensors", sample)})


def follow(client: httpx.Client, job: str) -> Any:
    """The events of a job: their names and data."""
    with client.stream("GET", f"/v1/jobs/{job}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def until(found: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = monotonic() + seconds
    while not found():
        assert monotonic() < deadline
        sleep(0.02)


def stage_children(folder: Path) -> list[int]:
    """Processes of stages that work in a folder, wherever they come from."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0") if process.name.isdigit() else []
        except OSError:
            continue
        if b"bwrap" not in words[:1] and b"service.child" in words and str(folder).encode() in words:
            found.append(int(process.name))
    return found
