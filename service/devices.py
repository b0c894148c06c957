"""Devices: how much of their memory a training step may have. A plan may be asked for a device instead of a budget."""

from typing import Any

from fastapi import Response, status
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from sqlalchemy import select
from sqlalchemy.orm import Session

from models import DeviceRecord, HoldingRecord
from models.base import new_id
from service.access import CallerDep, IdPath, calls, check_held, hold, let_go
from service.body import Body
from service.context import Context, ContextDep
from service.idempotency import id_of_request
from service.keys import Caller
from service.presets import PRESETS, RUNTIME_BYTES, RUNTIME_SOURCE, Preset
from service.problems import InvalidRequest, NotFound


class DeviceBody(Body):
    """A device of one's own."""

    name: str = Field(min_length=1, max_length=200, examples=["The gate at the barn"])
    memory_bytes: PositiveInt = Field(le=2**50, description="All its memory.", examples=[536870912])
    system_bytes: int = Field(ge=0, le=2**50, description="What its system and other programs take.", examples=[231735296])
    runtime_bytes: int = Field(RUNTIME_BYTES, ge=0, le=2**50, description="What Python, torch and memfit take before a model is loaded.")
    source: str = Field("", max_length=2000, description="Where the figures come from.", examples=["free -b, after boot"])


class DeviceAnswer(BaseModel):
    """A device, and what a training step may have of it."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(examples=["raspberry-pi-4b-2gb"])
    name: str
    memory_bytes: int
    memory_source: str
    system_bytes: int = Field(description="What its system takes.")
    system_source: str
    runtime_bytes: int = Field(description="What Python, torch and memfit take before a model is loaded.")
    runtime_source: str
    budget_bytes: int = Field(description="The rest: the budget of a plan that is asked for this device.")
    own: bool = Field(description="Whether it was posted, and may be deleted.")


class DeviceList(BaseModel):
    """Devices: presets, then those that were posted."""

    model_config = ConfigDict(frozen=True)

    devices: tuple[DeviceAnswer, ...]


def device_answer(session: Session, caller: Caller, id: str) -> DeviceAnswer:
    """
    Raises:
        NotFound: there is none.
    """
    for preset in PRESETS:
        if preset.id == id:
            return preset_answer(preset)
    check_held(session, caller, "device", id)
    record = session.get(DeviceRecord, id)
    if record is None:
        raise NotFound("device", id, "GET /v1/devices lists them; POST /v1/devices adds one.")
    return _of_record(record)


def with_budget(context: Context, caller: Caller, content: dict[str, Any]) -> dict[str, Any]:
    """A plan's request with the budget of the device it names.

    Raises:
        InvalidRequest: it has a budget as well.
        NotFound: there is no such device.
    """
    device = content.get("device")
    if device is None:
        return content
    if "budget" in content or not isinstance(device, str):
        raise InvalidRequest("a plan is for a budget or for a device, by its id. Leave out one of them.", device=device)
    with context.database.reading() as session:
        return content | {"budget": device_answer(session, caller, device).budget_bytes}


router = calls("/v1/devices", "devices")


@router.get("", operation_id="list_devices")
def list_devices(caller: CallerDep, context: ContextDep) -> DeviceList:
    """Boards and phones with their memory, what their system and the runtime take, and where each figure comes from; and your own."""
    own = select(DeviceRecord).order_by(DeviceRecord.created_at)
    if not caller.sees_all:
        held = select(HoldingRecord.subject_id).where(HoldingRecord.key_id == caller.key_id, HoldingRecord.kind == "device")
        own = own.where(DeviceRecord.id.in_(held))
    with context.database.reading() as session:
        return DeviceList(devices=(*map(preset_answer, PRESETS), *map(_of_record, session.scalars(own))))


@router.post("", status_code=status.HTTP_201_CREATED, operation_id="add_device")
def add_device(body: DeviceBody, response: Response, caller: CallerDep, context: ContextDep) -> DeviceAnswer:
    """Add a device of your own."""
    if body.memory_bytes <= body.system_bytes + body.runtime_bytes:
        raise InvalidRequest(
            "the system and the runtime take all of the device's memory, so nothing is left to train in. Check the figures."
        )
    id = id_of_request() or new_id()
    with context.database.transaction() as session:
        record = session.get(DeviceRecord, id)
        if record is None:
            session.add(record := DeviceRecord(id=id, **body.model_dump()))
            session.flush()
            hold(session, caller, "device", id)
    response.headers["location"] = f"/v1/devices/{record.id}"
    return _of_record(record)


@router.get("/{id}", operation_id="get_device")
def get_device(id: IdPath, caller: CallerDep, context: ContextDep) -> DeviceAnswer:
    """A device."""
    with context.database.reading() as session:
        return device_answer(session, caller, id)


@router.delete("/{id}", status_code=status.HTTP_204_NO_CONTENT, operation_id="delete_device")
def delete_device(id: IdPath, caller: CallerDep, context: ContextDep) -> None:
    """Delete a device of your own. Plans that were made for it stay."""
    with context.database.transaction() as session:
        if not device_answer(session, caller, id).own:
            raise InvalidRequest(f"the device {id!r} is one that everybody has. Only devices that were posted can be deleted.")
        let_go(session, caller, "device", id)
        session.delete(session.get_one(DeviceRecord, id))


def preset_answer(preset: Preset) -> DeviceAnswer:
    return DeviceAnswer(
        id=preset.id,
        name=preset.name,
        memory_bytes=preset.memory_bytes,
        memory_source=preset.memory_source,
        system_bytes=preset.system_bytes,
        system_source=preset.system_source,
        runtime_bytes=RUNTIME_BYTES,
        runtime_source=RUNTIME_SOURCE,
        budget_bytes=preset.budget_bytes,
        own=False,
    )


def _of_record(record: DeviceRecord) -> DeviceAnswer:
    return DeviceAnswer(
        id=record.id,
        name=record.name,
        memory_bytes=record.memory_bytes,
        memory_source=record.source,
        system_bytes=record.system_bytes,
        system_source=record.source,
        runtime_bytes=record.runtime_bytes,
        runtime_source=record.source,
        budget_bytes=record.memory_bytes - record.system_bytes - record.runtime_bytes,
        own=True,
    )
