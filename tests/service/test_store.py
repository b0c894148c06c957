"""Files by digest: whole, once, and nothing left of those that failed."""

import contextlib
import errno
import hashlib
import os
from pathlib import Path

import pytest

from service.problems import StorageFull
from service.store import Store, TooLarge, finished_digest
from tests.service.running import keep


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.open()
    return store


def files(store: Store) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file()]


def test_the_same_bytes_twice_are_one_file(store: Store, tmp_path: Path) -> None:
    digest = keep(store, "samples", b"abc")
    assert digest == hashlib.sha256(b"abc").hexdigest()
    assert keep(store, "samples", b"abc") == digest
    with store.workspace() as folder:
        (folder / "file").write_bytes(b"abc")
        store.keep("samples", folder / "file", finished_digest(folder / "file"))
    assert files(store) == [store.path("samples", digest)]
    assert store.path("samples", digest).read_bytes() == b"abc"


def test_a_draft_that_is_not_kept_is_gone(store: Store) -> None:
    with store.draft("models") as draft:
        draft.write(b"abc")
        assert len(files(store)) == 1
    assert files(store) == []
    with contextlib.suppress(KeyError), store.draft("models") as draft:
        draft.write(b"abc")
        raise KeyError
    assert files(store) == []


def test_a_draft_ends_at_its_limit(store: Store) -> None:
    with store.draft("models", limit_bytes=5) as draft:
        draft.write(b"12345")
        with pytest.raises(TooLarge) as refused:
            draft.write(b"6")
    assert refused.value.document.status == 413
    assert files(store) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_problem_and_leaves_nothing(code: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull) as refused:
        keep(store, "profiles", b"abc")
    assert refused.value.document.status == 507
    assert files(store) == []


def test_work_of_a_server_that_died_is_thrown_away(store: Store) -> None:
    kept = keep(store, "models", b"kept")
    (store.root / "work" / "half").write_bytes(b"half an upload")
    store.open()
    assert files(store) == [store.path("models", kept)]
