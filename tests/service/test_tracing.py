"""Traces: sent where a collector is named, with the job below the request that made it; and nothing where none is."""

import gzip
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from service.tracing import current_trace
from tests.service.clustered import clustered
from tests.service.running import FINISHED, ROOT, until


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """A collector of traces, as OTLP over HTTP sends them."""
    heard: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                heard.append(
                    ExportTraceServiceRequest.FromString(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
                )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_a_job_is_a_span_below_its_request(tmp_path: Path, model_file: Path, sample_file: Path) -> None:
    with (
        collector() as (address, heard),
        clustered(tmp_path, None, OTEL_EXPORTER_OTLP_ENDPOINT=address, OTEL_BSP_SCHEDULE_DELAY="200") as service,
    ):
        service.add_alone()
        with service.client as client:
            files = {"model": model_file.read_bytes(), "sample": sample_file.read_bytes(), "request": (None, '{"budget": "1 KiB"}')}
            trace = "0af7651916cd43dd8448eb211c80319c"
            headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
            plan = client.post("/v1/plans", files=files, headers=headers).raise_for_status().json()  # type: ignore[arg-type]
            until(lambda: ended(client, plan["id"]))

        def spans() -> dict[str, Span]:
            batches = [scope.spans for request in heard for resource in request.resource_spans for scope in resource.scope_spans]
            return {span.name: span for batch in batches for span in batch if span.trace_id.hex() == trace}

        until(lambda: {"job plan", "POST /v1/plans"} <= set(spans()))
        found = spans()
        by_id = {span.span_id: span for span in found.values()}
        assert {each.key for each in found["job plan"].attributes} == {"job.id", "job.attempt"}
        above = [span := found["job plan"]]
        while (parent := by_id.get(span.parent_span_id)) is not None:
            above.append(span := parent)
        assert above[-1].name == "POST /v1/plans" and above[-1].parent_span_id.hex() == "b7ad6b7169203331", [each.name for each in above]


def ended(client: httpx.Client, plan: str) -> bool:
    return client.get(f"/v1/plans/{plan}").json()["state"] in FINISHED


def test_without_a_collector_nothing_is_traced() -> None:
    assert current_trace() is None


def test_traces_without_what_sends_them_are_refused_in_words(tmp_path: Path) -> None:
    code = "import sys; sys.modules['opentelemetry.sdk'] = None; sys.argv[1:] = sys.argv[1:]; from service.cli import main; main()"
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--data", str(tmp_path), "--port", "0"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and re.search(r"memfit\[telemetry\]", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
