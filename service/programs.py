"""Integer programs of the profiles that plans were last asked for: with them another budget takes tenths of a second, not seconds."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

from models import ProfileRecord
from planner.errors import PlannerError
from planner.request import PlanRequest
from service.store import Store
from service.stored import read_profile

if TYPE_CHECKING:
    from planner.schedules import Programs  # with the solver, which a server that solves nothing yet does without

MOST = 2  # of ResNet-50's size, 0.25 GB each; as many requests have some at a time (`service.app`)


@dataclass
class _Kept:
    programs: "Programs | None" = None
    lock: Lock = field(default_factory=Lock)  # programs remember what was solved last, so one request solves at a time


class KeptPrograms:
    """Those of the profiles and requests asked for last."""

    def __init__(self, store: Store, most: int = MOST) -> None:
        self._store, self._most, self._lock = store, most, Lock()
        self._kept: OrderedDict[tuple[str | None, PlanRequest], _Kept] = OrderedDict()

    @contextmanager
    def of(self, record: ProfileRecord, request: PlanRequest) -> "Iterator[Programs]":
        """The programs of a measured profile for a request, which nobody else has meanwhile.

        Raises:
            Outdated: the profile was written by a memfit that wrote them otherwise.
            NothingTrainable: no parameter with a gradient may train.
        """
        from planner.solver import programs_for

        key = (record.content_digest, request.without_limits)
        with self._lock:
            kept = self._kept.setdefault(key, _Kept())
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        with kept.lock:
            if kept.programs is None:
                profile = read_profile(self._store, record)
                assert profile is not None, "it was measured"
                kept.programs = programs_for(profile, request)
            kept.programs = kept.programs.within(request)
            try:
                yield kept.programs
            except PlannerError:
                raise  # an answer
            except BaseException:
                kept.programs = None  # a mishap may have left them half of what they were
                raise
