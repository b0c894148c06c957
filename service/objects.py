"""Files in an object store (S3 and its like) or in a folder that machines share, through obstore."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from service.artifacts import Cache, Kept
from service.outages import Away

PART_BYTES, PARTS_AT_A_TIME = 8 * 2**20, 4
SECONDS_TO_RETRY = 8
RETRY = {
    "max_retries": 5,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
    "retry_timeout": timedelta(seconds=SECONDS_TO_RETRY),
}


class Objects:
    """Objects by key, with copies of those that were read on this machine.

    `url`: `s3://BUCKET/PREFIX` (settings from the `AWS_…` variables), `gs://…`, `az://…`, or `file:///FOLDER`.
    """

    def __init__(self, url: str, cache: Path, cache_bytes: int) -> None:
        self._store = _open(url, RETRY, 60)
        self._once = _open(url, {"max_retries": 0}, 2)  # for what others wait for
        self._cache = Cache(cache, cache_bytes)

    def put(self, key: str, file: Path) -> None:
        with _outages_are_problems():
            obstore.put(self._store, key, file, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_A_TIME)

    def has(self, key: str) -> bool:
        with _outages_are_problems():
            try:
                obstore.head(self._once, key)
            except FileNotFoundError:
                return False
        return True

    def local(self, key: str) -> Path:
        if (copy := self._cache.find(key)) is not None:
            return copy
        with _outages_are_problems():
            copy = self._cache.fill(key, iter(obstore.get(self._store, key).stream(min_chunk_size=2**20)))
        self._cache.shrink()
        return copy

    def read(self, key: str) -> bytes:
        with _outages_are_problems():
            return bytes(obstore.get(self._store, key).bytes())

    def listed(self, folder: str) -> Iterator[Kept]:
        with _outages_are_problems():
            for page in obstore.list(self._store, prefix=folder):
                for found in page:
                    yield Kept(found["path"], found["size"], found["last_modified"].timestamp())

    def remove(self, key: str) -> None:
        with _outages_are_problems():
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                return


def _open(url: str, retry: Any, seconds: float) -> ObjectStore:
    if url.startswith("file:"):
        return from_url(url, mkdir=True)
    allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"  # options given here hide those of the environment
    options: Any = {"timeout": timedelta(seconds=seconds), "allow_http": allow_http}
    return from_url(url, retry_config=retry, client_options=options)


@contextmanager
def _outages_are_problems() -> Iterator[None]:
    """Within the block, an object store that does not answer, or not as it should, raises `Away`."""
    try:
        yield
    except BaseError as error:
        raise Away("object store", type(error).__name__) from error
