"""As much of S3 as a store of files needs, in memory, on a port of its own; and able to fail."""

import hashlib
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Thread
from time import sleep
from uuid import uuid4
from xml.sax.saxutils import escape

import uvicorn
from starlette.requests import Request
from starlette.responses import Response

BUCKET = "memfit"


@dataclass
class S3:
    """A bucket. `away`: every request is answered 503."""

    port: int
    objects: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    away: bool = False
    refused: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """Settings of a service that keeps its files here."""
        return {
            "MEMFIT_ARTIFACTS_URL": f"s3://{BUCKET}/files",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    async def answer(self, request: Request) -> Response:
        if self.away:
            self.refused += 1
            return Response("<Error><Code>SlowDown</Code></Error>", 503)
        key, query = request.url.path.removeprefix(f"/{BUCKET}").removeprefix("/"), request.query_params
        body = await request.body()
        match request.method:
            case "PUT" if "uploadId" in query:
                self.parts[query["uploadId"]][int(query["partNumber"])] = body
                return Response(headers={"etag": _etag(body)})
            case "PUT":
                self.objects[key] = body, datetime.now(UTC)
                return Response(headers={"etag": _etag(body)})
            case "POST" if "uploads" in query:
                self.parts[id := str(uuid4())] = {}
                return _xml(f"<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>")
            case "POST" if "uploadId" in query:
                whole = b"".join(part for _, part in sorted(self.parts.pop(query["uploadId"]).items()))
                self.objects[key] = whole, datetime.now(UTC)
                return _xml(f"<CompleteMultipartUploadResult><ETag>{_etag(whole)}</ETag></CompleteMultipartUploadResult>")
            case "POST" if "delete" in query:
                keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
                for each in keys:
                    self.objects.pop(each, None)
                return _xml("<DeleteResult>" + "".join(f"<Deleted><Key>{each}</Key></Deleted>" for each in keys) + "</DeleteResult>")
            case "DELETE":
                self.objects.pop(key, None)
                return Response(status_code=204)
            case _ if "list-type" in query:
                return self._list(query.get("prefix", ""))
            case _:
                return self._get(key, request.headers.get("range"))

    def _list(self, prefix: str) -> Response:
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>{escape(_etag(data))}</ETag>"
            f"<LastModified>{at:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
            for key, (data, at) in self.objects.items()
            if key.startswith(prefix)
        )
        return _xml(f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>")

    def _get(self, key: str, range: str | None) -> Response:
        if key not in self.objects:
            return _xml("<Error><Code>NoSuchKey</Code></Error>", 404)
        data, at = self.objects[key]
        headers = {"etag": _etag(data), "last-modified": f"{at:%a, %d %b %Y %H:%M:%S GMT}"}
        if range is None:
            return Response(data, headers=headers)
        begin, end = (int(number) for number in range.removeprefix("bytes=").split("-"))
        part = data[begin : end + 1]
        headers["content-range"] = f"bytes {begin}-{begin + len(part) - 1}/{len(data)}"
        return Response(part, 206, headers=headers)


@contextmanager
def s3() -> Iterator[S3]:
    """A bucket that is there within the block."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        bucket = S3(listening.getsockname()[1])

        async def app(scope, receive, send):  # type: ignore[no-untyped-def]
            await (await bucket.answer(Request(scope, receive)))(scope, receive, send)

        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                sleep(0.01)
            yield bucket
        finally:
            server.should_exit = True
            thread.join()


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _xml(text: str, status: int = 200) -> Response:
    return Response(f'<?xml version="1.0" encoding="UTF-8"?>{text}', status, media_type="application/xml")
