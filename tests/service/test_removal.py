"""What is deleted is gone, and files that nothing refers to are collected; others never are."""

import os
import time
from pathlib import Path

from models import HoldingRecord, JobKind, JobRecord, ModelRecord, ProfileRecord, SampleRecord
from service.database import Database
from service.removal import collect
from service.store import Store
from tests.service.running import Running, keep


def test_files_without_a_record_are_collected_when_they_are_old(tmp_path: Path) -> None:
    database, store = Database(f"sqlite:///{tmp_path / 'memfit.db'}"), Store(tmp_path)
    database.migrate()
    store.open()
    kept, orphan = keep(store, "samples", b"kept"), keep(store, "samples", b"orphan")
    content = keep(store, "samples", b"rewritten")
    with database.transaction() as session:
        session.add_all(
            [
                record := JobRecord(kind="plan", subject_id="p"),
                SampleRecord(digest=kept, bytes=4, summary_json="{}"),
                SampleRecord(digest="x", bytes=9, content_digest=content, summary_json="{}"),
            ]
        )
    job = record.id
    store.upload("nobody").write_bytes(b"abc")
    for age, name in ((8, "upload-old"), (8, job), (6, "upload-new")):
        store.log(name).write_bytes(b"said")
        os.utime(store.log(name), times=2 * (time.time() - age * 24 * 3600,))
    assert collect(database, store) == len(b"said"), "new files may be about to be referred to"
    assert [store.log(name).exists() for name in ("upload-old", job, "upload-new")] == [False, True, True]
    assert collect(database, store, older_than_seconds=0) == len(b"orphan") + len(b"abc")
    assert store.path("samples", kept).exists() and store.path("samples", content).exists()
    assert not store.path("samples", orphan).exists()
    database.close()


def test_a_deleted_sample_is_gone_with_its_bytes(service: Running, sample_file: Path) -> None:
    before = service.files()
    place = service.client.post("/v1/samples", content=sample_file.read_bytes()).raise_for_status().headers["location"]
    assert service.client.delete(place).status_code == 204
    assert service.client.delete(place).status_code == 404
    collect(service.context.database, service.context.store, older_than_seconds=0)
    assert service.files() == before
    assert service.client.post("/v1/samples", content=sample_file.read_bytes()).status_code == 201


def test_a_deleted_profile_is_gone_with_its_jobs_and_their_logs(service: Running) -> None:
    with service.context.database.transaction() as session:
        session.add_all([ModelRecord(digest="m", bytes=1, summary_json="{}"), SampleRecord(digest="s", bytes=1, summary_json="{}")])
        session.flush()
        session.add(profile := ProfileRecord(model_digest="m", sample_digest="s", loss="mse", batch_norm="frozen", batch_size=1))
        session.flush()
        jobs = [JobRecord(kind=JobKind.PROFILE, subject_id=profile.id, state=state) for state in ("failed", "succeeded")]
        session.add_all(jobs)
        session.flush()
        profile.job_id = jobs[1].id
        session.add(HoldingRecord(key_id="ann", kind="job", subject_id=jobs[0].id))
    for job in jobs:
        service.context.store.log(job.id).write_text("said")
        assert service.client.get(f"/v1/jobs/{job.id}/logs").text == "said"
    assert service.client.delete(f"/v1/profiles/{profile.id}").status_code == 204
    for job in jobs:
        assert service.client.get(f"/v1/jobs/{job.id}").status_code == 404
        assert not service.context.store.log(job.id).exists()
    with service.context.database.reading() as session:
        assert session.get(HoldingRecord, ("ann", "job", jobs[0].id)) is None
