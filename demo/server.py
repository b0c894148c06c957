"""The planning service as a process of its own, on a free port of this machine."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

HOST = "127.0.0.1"
START_SECONDS = 60.0


@contextmanager
def running(data: Path, log: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Run `memfit serve`, its files under `data`; give its address once it answers, and end it afterwards."""
    port = free_port()
    address = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "service.cli", "serve", "--host", HOST, "--port", str(port), "--data", str(data)]
    # A session of its own: Ctrl-C reaches the demo alone, which then ends the service in order.
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True) as process,
    ):
        try:
            wait_until_healthy(address, process, log)
            yield address
        finally:
            process.terminate()


def wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{address}/healthz").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit(f"the service did not start; its last words, from {os.path.relpath(log)}:\n{log.read_text()[-2000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
