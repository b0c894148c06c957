"""Tells whoever listens what becomes of a job, from the threads that run jobs to the coroutines that answer requests."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

Event = TypeVar("Event")


@dataclass(frozen=True, eq=False)
class Listener(Generic[Event]):
    """Events in order of arrival; None when there are no more."""

    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[Event | None]"

    def tell(self, event: Event | None) -> None:
        """From any thread."""
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Hub(Generic[Event]):
    """Hands events about a topic to its listeners. Keeps none: the database has the state for those who come later."""

    def __init__(self) -> None:
        self._lock, self._closed = Lock(), False
        self._listeners: defaultdict[str, set[Listener[Event]]] = defaultdict(set)

    @contextmanager
    def listening(self, topic: str) -> Iterator[Listener[Event]]:
        """Within the block, events about `topic` arrive. Called by a coroutine."""
        listener: Listener[Event] = Listener(asyncio.get_running_loop(), asyncio.Queue())
        with self._lock:
            if self._closed:
                listener.events.put_nowait(None)
            self._listeners[topic].add(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners[topic].discard(listener)
                if not self._listeners[topic]:
                    del self._listeners[topic]

    def topics(self) -> list[str]:
        """What somebody listens to."""
        with self._lock:
            return list(self._listeners)

    def tell(self, topic: str, event: Event) -> None:
        """From any thread."""
        with self._lock:
            for listener in self._listeners.get(topic, ()):
                listener.tell(event)

    def close(self) -> None:
        """Let every listener end, so that a server can."""
        with self._lock:
            self._closed = True
            for listeners in self._listeners.values():
                for listener in listeners:
                    listener.tell(None)
