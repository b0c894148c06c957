"""As little of an HTTP client as a load needs: it must cost less than the service it measures, on the same cores."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

MOST_BYTES = 2**26


class Connection:
    """One connection, one request at a time."""

    def __init__(self, address: str) -> None:
        self._host, _, port = urlsplit(address).netloc.partition(":")
        self._port = int(port)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of an answer, which must be a good one."""
        reader = await self._send(method, path, body)
        head = await reader.readuntil(b"\r\n\r\n")
        status, fields = _read_head(head)
        answer = await reader.readexactly(int(fields[b"content-length"]))
        assert status < 300, (status, answer)
        return answer

    async def open_stream(self, path: str) -> bytes:
        """Ask for an event stream; its head and first event."""
        reader = await self._send("GET", path, b"")
        head = await reader.readuntil(b"\r\n\r\n")
        assert _read_head(head)[0] == 200, head
        return await reader.readuntil(b"\n\r\n")  # an event, in a chunk

    async def rest(self) -> bytes:
        """All that comes until the stream ends."""
        assert self._reader is not None
        return await self._reader.readuntil(b"\r\n0\r\n\r\n")

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    async def _send(self, method: str, path: str, body: bytes) -> asyncio.StreamReader:
        if self._reader is None or self._writer is None or self._reader.at_eof():  # a server closes what is idle
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=MOST_BYTES)
        fields = f"host: {self._host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{fields}".encode() + body)
        await self._writer.drain()
        return self._reader


class Pool:
    """Connections that are kept; a request takes the next that is free."""

    def __init__(self, address: str, count: int) -> None:
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for _ in range(count):
            self._free.put_nowait(Connection(address))

    async def get(self, path: str) -> bytes:
        return await self._ask("GET", path, b"")

    async def post(self, path: str, content: dict[str, Any]) -> bytes:
        return await self._ask("POST", path, json.dumps(content).encode())

    async def close(self) -> None:
        while not self._free.empty():
            await self._free.get_nowait().close()

    async def _ask(self, method: str, path: str, body: bytes) -> bytes:
        connection = await self._free.get()
        try:
            return await connection.ask(method, path, body)
        finally:
            self._free.put_nowait(connection)


def _read_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    status, *lines = head.split(b"\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in lines if line)
    return int(status.split()[1]), fields
