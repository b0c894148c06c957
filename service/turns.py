"""Requests whose work takes seconds: a few work at a time, and those that wait for a turn hold no thread, so that quick calls find one."""

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Turns:
    """Turns of one kind of work."""

    def __init__(self, at_a_time: int) -> None:
        self._limiter = CapacityLimiter(at_a_time)

    async def run(self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """Do the work in a thread, once it is its turn."""
        return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._limiter)
