"""A head that does not end is refused before it fills the memory; what is in order is answered, however it comes."""

import socket
from collections.abc import Iterator

import pytest

from service.heads import MOST_BYTES
from tests.service.running import Running

LINE = b"x-line: " + b"a" * 1014 + b"\r\n"
ASK = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
UPLOAD = b"POST /v1/samples HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"  # what follows are trailers


@pytest.fixture
def client(service: Running) -> Iterator[socket.socket]:
    with service.connect(timeout_seconds=30) as client:
        yield client


def read_to_the_end(client: socket.socket) -> bytes:
    pieces = []
    try:
        while piece := client.recv(65_536):
            pieces.append(piece)
    except ConnectionResetError:  # closed with lines of ours unread
        pass
    return b"".join(pieces)


def send_without_end(client: socket.socket, start: bytes, piece: bytes) -> int:
    """Send pieces until the service listens no more; how many bytes that were."""
    sent = 0
    try:
        client.sendall(start)
        while sent < 100 * MOST_BYTES:
            client.sendall(piece)
            sent += len(piece)
    except (ConnectionResetError, BrokenPipeError):
        pass
    return sent


@pytest.mark.parametrize(("start", "piece"), [(ASK, LINE), (ASK + b"x-endless: ", b"a" * 1024), (b"GET /", b"a" * 1024), (UPLOAD, LINE)])
def test_a_head_without_end_is_refused(client: socket.socket, service: Running, start: bytes, piece: bytes) -> None:
    assert send_without_end(client, start, piece) < 100 * MOST_BYTES
    assert service.client.get("/healthz").status_code == 200


def test_a_head_that_is_too_long_is_told_so(client: socket.socket) -> None:
    for _ in range(MOST_BYTES // len(LINE) + 1):
        client.sendall(LINE if _ else ASK + LINE)
    answer = read_to_the_end(client)
    assert answer.startswith(b"HTTP/1.1 400") and b"longer than 65536 bytes" in answer


def test_heads_in_pieces_and_several_at_once_are_read(client: socket.socket) -> None:
    for piece in (ASK[:5], ASK[5:], LINE * 30, b"\r\n", (ASK + b"\r\n") * 50, ASK + LINE * 30, b"Connection: close\r\n\r\n"):
        client.sendall(piece)
    assert read_to_the_end(client).count(b'{"status":"ok"}') == 52
