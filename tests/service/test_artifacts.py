"""Finished files in a folder, in a shared folder and in an object store: the same from outside."""

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.artifacts import Artifacts, Cache, Folder
from service.objects import Objects
from service.outages import Away
from tests.service.s3 import s3

LARGE = os.urandom(2**20) * 20  # in more than one part


@pytest.fixture(params=["folder", "shared", "s3"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Artifacts]:
    if request.param == "folder":
        yield Folder(tmp_path)
    elif request.param == "shared":
        yield Objects((tmp_path / "shared").as_uri(), tmp_path / "cache", 2**30)
    else:
        with s3() as bucket:
            for name, value in bucket.environment.items():
                monkeypatch.setenv(name, value)
            yield Objects(bucket.environment["MEMFIT_ARTIFACTS_URL"], tmp_path / "cache", 2**30)


def put(artifacts: Artifacts, folder: Path, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    (file := folder / digest[:8]).write_bytes(data)
    artifacts.put(key := f"samples/{digest[:2]}/{digest}.safetensors", file)
    return key


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
def test_a_file_is_found_again_until_it_is_removed(artifacts: Artifacts, tmp_path: Path, data: bytes) -> None:
    key = put(artifacts, tmp_path, data)
    assert put(artifacts, tmp_path, data) == key, "again changes nothing"
    assert artifacts.has(key) and artifacts.read(key) == data
    assert artifacts.local(key).read_bytes() == data
    (kept,) = artifacts.listed("samples")
    assert (kept.key, kept.bytes) == (key, len(data))
    assert abs(kept.placed_at - time.time()) < 60
    artifacts.remove(key)
    artifacts.remove(key)
    assert not artifacts.has(key)
    assert list(artifacts.listed("samples")) == []
    with pytest.raises(FileNotFoundError):
        artifacts.read(key)


def test_an_object_store_that_is_away_is_a_problem_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("service.objects.RETRY", {"max_retries": 1})
        artifacts = Objects(bucket.environment["MEMFIT_ARTIFACTS_URL"], tmp_path / "cache", 2**30)
        bucket.away = True
        with pytest.raises(Away) as refused:
            put(artifacts, tmp_path, b"data")
        assert refused.value.document.status == 503 and bucket.refused
        bucket.away = False
        key = put(artifacts, tmp_path, b"data")
        bucket.away = True
        for ask in (artifacts.has, artifacts.local, artifacts.remove, lambda _: list(artifacts.listed("samples"))):
            with pytest.raises(Away):
                ask(key)
        bucket.away = False
        assert artifacts.local(key).read_bytes() == b"data"


def test_what_is_not_of_its_digest_is_not_given_out(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path, 2**30), f"samples/ab/{hashlib.sha256(b'whole').hexdigest()}.safetensors"
    with pytest.raises(OSError, match="digest"):
        cache.fill(key, iter([b"who"]))
    assert cache.find(key) is None and not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert cache.fill(key, iter([b"who", b"le"])).read_bytes() == b"whole"


def test_copies_used_longest_ago_go_first_and_those_used_lately_stay(tmp_path: Path) -> None:
    cache, keys = Cache(tmp_path, 10), []
    for age, data in enumerate([b"oldest", b"older", b"old"]):
        digest = hashlib.sha256(data).hexdigest()
        keys.append(f"samples/{digest[:2]}/{digest}.bin")
        at = time.time() - (4 - age) * Cache.SECONDS_KEPT
        os.utime(cache.fill(keys[-1], iter([data])), (at, at))
    cache.shrink()
    assert [(tmp_path / key).exists() for key in keys] == [False, True, True]
    for key in keys[1:]:
        cache.find(key)
    Cache(tmp_path, 0).shrink()
    assert [(tmp_path / key).exists() for key in keys] == [False, True, True]
