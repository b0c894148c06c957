"""Answers that never change again, as they were sent: a finished plan takes milliseconds to write anew, a profile a tenth of a second."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from fastapi import Response
from pydantic import BaseModel

MOST_BYTES = 32 * 2**20


def json_answer(answer: BaseModel | bytes) -> Response:
    """An answer that is asked for often, written by the thread that made it: FastAPI would take another to look it through again."""
    return Response(answer if isinstance(answer, bytes) else answer.model_dump_json(), media_type="application/json")


class Rendered:
    """The answers asked for last, by id, up to so many bytes."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._lock, self._most_bytes, self._bytes = Lock(), most_bytes, 0
        self._answers: OrderedDict[str, bytes] = OrderedDict()

    def get(self, id: str, render: Callable[[], bytes]) -> bytes:
        with self._lock:
            if (known := self._answers.get(id)) is not None:
                self._answers.move_to_end(id)
                return known
        answer = render()
        with self._lock:
            if id not in self._answers:
                self._answers[id] = answer
                self._bytes += len(answer)
            while self._bytes > self._most_bytes:
                _, oldest = self._answers.popitem(last=False)
                self._bytes -= len(oldest)
        return answer
