"""What is deleted is gone, and files that nothing refers to are collected; others never are."""

from pathlib import Path

from models import SampleRecord
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
                SampleRecord(digest=kept, bytes=4, summary_json="{}"),
                SampleRecord(digest="x", bytes=9, content_digest=content, summary_json="{}"),
            ]
        )
    store.upload("nobody").write_bytes(b"abc")
    assert collect(database, store) == 0, "new files may be about to be referred to"
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
