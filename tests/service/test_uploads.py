"""What is uploaded is written anew before anything opens it, and hostile files cost the service nothing."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from sqlalchemy import select, update

from models import ModelRecord
from tests.service.intake.hostile import Hostile, add, both, hostile_files, many_nodes, rewritten
from tests.service.running import Running, problem, running, serving

PEAK_BYTES = 500 * 10**6


def test_what_is_kept_of_a_model_is_what_was_written_anew(service: Running, model_file: Path, tmp_path: Path) -> None:
    upload = rewritten(
        model_file, tmp_path / "upload.pt2", both(add("extra/note", b"hello"), add("data/sample_inputs/model.pt", b"pickle"))
    )
    id = service.client.post("/v1/models", content=upload.read_bytes()).raise_for_status().json()["id"]
    kept = [path for path in service.files() if path.endswith(".pt2")]
    assert len(kept) == 1
    assert id not in kept[0]
    with zipfile.ZipFile(service.context.store.root / kept[0]) as archive:
        assert not [name for name in archive.namelist() if "extra" in name]
        assert archive.read("model/data/sample_inputs/model.pt") == b""


def test_a_sample_of_numpy_is_kept_as_safetensors(service: Running) -> None:
    images, labels = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype("float32"), np.arange(4)
    np.savez(data := io.BytesIO(), **{"inputs.0": images, "targets": labels})
    before = service.files()
    sample = service.client.post("/v1/samples", content=data.getvalue()).raise_for_status().json()
    assert sample["count"] == 4
    (kept,) = service.files() - before
    assert np.array_equal(load_file(service.context.store.root / kept)["inputs.0"].numpy(), images)
    assert service.client.post("/v1/samples", content=data.getvalue()).status_code == 200, "it is known by the digest of what was sent"


@pytest.mark.slow
def test_models_of_an_older_service_are_written_anew(model_file: Path, tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        id = service.client.post("/v1/models", content=model_file.read_bytes()).raise_for_status().json()["id"]
        store = service.context.store
        with service.context.database.transaction() as session:
            session.add(ModelRecord(digest="0" * 64, bytes=1, summary_json=session.scalar(select(ModelRecord.summary_json)) or ""))
            session.execute(update(ModelRecord).values(content_digest=None))
        for digest, content in ((id, model_file.read_bytes()), ("0" * 64, b"\x80 a pickle")):
            store.path("models", digest).parent.mkdir(parents=True, exist_ok=True)
            store.path("models", digest).write_bytes(content)
        (kept,) = [path for path in service.files() if path.startswith("programs/")]
        (store.root / kept).unlink()
    with running(tmp_path / "data") as service:
        assert {path for path in service.files() if path.endswith(".pt2")} == {kept, f"models/00/{'0' * 64}.pt2"}
        with service.context.database.reading() as session:
            assert dict(session.execute(select(ModelRecord.digest, ModelRecord.content_digest)).all()) == {
                id: Path(kept).stem,
                "0" * 64: None,
            }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_service_stays_small_whatever_is_sent(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All hostile files, one after the other. Without a sandbox: what ran could leave its canary."""
    monkeypatch.setenv("MEMFIT_SANDBOX", "off")
    hostile = hostile_files(tmp_path / "canary") | {"many nodes": Hostile(many_nodes(600_000), "at most 100000")}
    with serving(tmp_path / "data") as (process, client):
        for each in hostile.values():
            upload = rewritten(model_file, tmp_path / "upload.pt2", each.edit)
            answer = client.post("/v1/models", content=upload.read_bytes(), timeout=120)
            if each.why is None:
                assert answer.status_code in (200, 201), answer.text
            else:
                kind = "unsupported-operation" if "operation" in answer.json() else "bad-model"
                assert re.search(each.why, problem(answer, 422, kind)["detail"])
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert client.get("/healthz").status_code == 200
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    print(f"{len(hostile)} files; the server's highest memory: {int(peak[1]) * 1024 / 1e6:.0f} MB")
    assert int(peak[1]) * 1024 < PEAK_BYTES
    assert not (tmp_path / "canary").exists()
