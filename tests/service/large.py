"""Sends and fetches three gibibytes, and prints the memory the server took: `python -m tests.service.large [GIBIBYTES]`."""

import json
import re
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from models import JobKind, JobRecord, ModelRecord, PlanRecord, ProfileRecord
from service.database import Database
from service.settings import Settings
from service.store import Store
from tests.service.running import serving

CHUNK_BYTES = 2**20
TUS = {"tus-resumable": "1.0.0"}


def sample(size: int) -> Iterator[bytes]:
    """A safetensors file of zeros, piece by piece."""
    header = json.dumps({"inputs.0": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    yield struct.pack("<Q", len(header)) + header
    for _ in range(size // CHUNK_BYTES):
        yield bytes(CHUNK_BYTES)


def rest(pieces: Iterator[bytes], skip: int) -> Iterator[bytes]:
    """What follows the first `skip` bytes."""
    for piece in pieces:
        yield piece[skip:]
        skip = max(skip - len(piece), 0)


def plan_with_checkpoint(data: Path, content: str) -> str:
    """A plan whose checkpoint is the stored sample: what a download gives is no matter here."""
    store, database = Store(data), Database(Settings(data_dir=data).url)
    target = store.path("checkpoints", content)
    target.parent.mkdir(parents=True)
    target.hardlink_to(store.path("samples", content))
    with database.transaction() as session:
        session.add_all(
            [ModelRecord(digest="m", bytes=1, summary_json="{}"), job := JobRecord(kind=JobKind.PLAN, subject_id="", state="succeeded")]
        )
        session.flush()
        profile = ProfileRecord(model_digest="m", sample_digest=content, loss="mse", batch_norm="frozen", batch_size=1)
        session.add(profile)
        session.flush()
        plan = PlanRecord(profile_id=profile.id, job_id=job.id, state="ready", request_json="{}", checkpoint_digest=content)
        session.add(plan)
        session.flush()
        id = plan.id
    database.close()
    return id


def main() -> None:
    size = int(float(sys.argv[1] if len(sys.argv) > 1 else 3) * 2**30) // CHUNK_BYTES * CHUNK_BYTES
    total = sum(len(piece) for piece in [next(sample(size))]) + size
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder, "data")) as (process, client):

        def said(what: str, begin: float) -> None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e6  # type: ignore[index]
            print(f"{what}: {time.monotonic() - begin:.1f} s; the server's highest memory so far: {peak:.0f} MB", flush=True)

        said("idle", time.monotonic())
        begin = time.monotonic()
        answer = client.post("/v1/samples", content=sample(size), timeout=None).raise_for_status().json()
        said(f"upload of {total:,} bytes", begin)
        place = client.post("/v1/uploads", headers=TUS | {"upload-length": str(total)}).raise_for_status().headers["location"]
        begin, piece = time.monotonic(), TUS | {"content-type": "application/offset+octet-stream"}

        def cut() -> Iterator[bytes]:
            sent = 0
            for chunk in sample(size):
                if sent > 0.6 * total:
                    raise ConnectionError
                sent += len(chunk)
                yield chunk

        try:
            client.patch(place, content=cut(), headers=piece | {"upload-offset": "0"}, timeout=None)
        except (ConnectionError, httpx.TransportError):
            said("resumable upload, cut at 60 %", begin)
        there = -1
        while there != (there := int(client.head(place, headers=TUS).headers["upload-offset"])):
            time.sleep(0.5)
        begin = time.monotonic()
        client.patch(
            place, content=rest(sample(size), there), headers=piece | {"upload-offset": str(there)}, timeout=None
        ).raise_for_status()
        again = client.post("/v1/samples", json={"upload": place.rpartition("/")[2]}, timeout=None).raise_for_status().json()
        assert again["id"] == answer["id"]
        said(f"its rest from {there:,}, the same file", begin)
        plan = plan_with_checkpoint(Path(folder, "data"), answer["id"])
        begin, got = time.monotonic(), 0
        with client.stream("GET", f"/v1/plans/{plan}/checkpoint", timeout=None) as download:
            for data in download.iter_raw():
                got += len(data)
        assert got == total
        said("download", begin)


if __name__ == "__main__":
    main()
