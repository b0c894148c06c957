"""Profiles and plans as they are stored, by this memfit or an earlier one."""

from collections.abc import Callable
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from models import PlanRecord, ProfileRecord
from planner.plan import Certificate, Plan
from planner.profile import Profile
from service.documents import CERTIFICATE, PLAN, PROFILE
from service.problems import Problem
from service.store import Store

Result = TypeVar("Result")


class Outdated(Problem):
    """What an earlier memfit wrote, and this one does not read."""

    kind, title, status = "outdated", "An earlier version wrote it", 409


def read_profile(store: Store, record: ProfileRecord) -> Profile | None:
    """What was measured; None if it was not yet.

    Raises:
        Outdated: by a memfit that wrote profiles otherwise.
    """
    if record.content_digest is None:
        return None
    try:
        return PROFILE.validate_json(store.path("profiles", record.content_digest).read_bytes())
    except ValidationError as error:
        raise Outdated(
            f"the profile {record.id!r} was measured by an earlier memfit, and this one does not read it. Ask for it again with "
            "POST /v1/profiles or POST /v1/plans, naming its model and sample: it is measured anew.",
            profile=record.id,
            model=record.model_digest,
            sample=record.sample_digest,
        ) from error


def read_plan(record: PlanRecord) -> Plan | None:
    """The plan that was chosen; None if none was yet.

    Raises:
        Outdated: by a memfit that wrote plans otherwise.
    """
    return _of_plan(record, PLAN, record.plan_json)


def read_certificate(record: PlanRecord) -> Certificate | None:
    """What the plan's step took; None if it was not measured yet.

    Raises:
        Outdated: by a memfit that wrote certificates otherwise.
    """
    return _of_plan(record, CERTIFICATE, record.certificate_json)


def _of_plan(record: PlanRecord, adapter: TypeAdapter[Result], content: str | None) -> Result | None:
    try:
        return adapter.validate_json(content) if content is not None else None
    except ValidationError as error:
        raise Outdated(
            f"the plan {record.id!r} was made by an earlier memfit, and this one does not read it. Its checkpoint is still there if it was "
            "ready; for all else, ask for a plan again with POST /v1/plans.",
            plan=record.id,
        ) from error


def readable(read: Callable[[], Result | None]) -> Result | None:
    """What is stored; None if an earlier memfit wrote it: then it is made anew."""
    try:
        return read()
    except Outdated:
        return None
