"""One request at a time for each resumable upload."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from service.problems import Problem


class UploadConflict(Problem):
    """A piece that does not go on where the upload is, or an upload in use."""

    kind, title, status = "upload-conflict", "The upload is not there", 409


class Busy:
    """The uploads that a request works on now: one at a time may."""

    def __init__(self) -> None:
        self._lock, self._ids = Lock(), set[str]()

    @contextmanager
    def holding(self, id: str) -> Iterator[None]:
        """
        Raises:
            UploadConflict: another request has it.
        """
        with self._lock:
            if id in self._ids:
                raise UploadConflict(f"another request works on the upload {id!r}. Wait for its end, then ask with HEAD.", upload=id)
            self._ids.add(id)
        try:
            yield
        finally:
            with self._lock:
                self._ids.discard(id)
