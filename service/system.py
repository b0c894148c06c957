"""What the service runs on, and how it confines what it opens."""

import os
from importlib.metadata import PackageNotFoundError, version

from pydantic import BaseModel, ConfigDict, Field

from service.access import calls
from service.context import ContextDep
from service.limits import machine_memory_bytes
from service.sandbox import Sandbox


class LimitsAnswer(BaseModel):
    """Most that the process of one stage may take."""

    model_config = ConfigDict(frozen=True)

    memory_bytes: int = Field(description="Private memory of each process.")
    cpu_seconds: int = Field(description="Of each process.")
    wall_seconds: float = Field(description="From the stage's start; time in the queue is not counted.")
    file_bytes: int = Field(description="Of each file it writes.")
    processes: int | None = Field(description="Processes and threads; null where the system sets none, as for root.")


class SystemAnswer(BaseModel):
    """The machine, and what stages get of it."""

    model_config = ConfigDict(frozen=True)

    version: str
    cores: int
    memory_bytes: int
    sandbox: Sandbox = Field(
        description="bubblewrap: no network, no foreign processes, only its own files; namespaces: no network; none: as the service itself."
    )
    limits: LimitsAnswer


router = calls("/v1/system", "system")


@router.get("", operation_id="get_system")
def get_system(context: ContextDep) -> SystemAnswer:
    """The machine the service runs on, and how far the processes that open uploaded files are kept from it."""
    limits = context.confinement.limits
    return SystemAnswer(
        version=memfit_version(),
        cores=os.cpu_count() or 1,
        memory_bytes=machine_memory_bytes(),
        sandbox=context.confinement.sandbox,
        limits=LimitsAnswer(
            memory_bytes=limits.memory_bytes,
            cpu_seconds=limits.cpu_seconds,
            wall_seconds=limits.wall_seconds,
            file_bytes=limits.file_bytes,
            processes=limits.processes if os.getuid() else None,
        ),
    )


def memfit_version() -> str:
    try:
        return version("memfit")
    except PackageNotFoundError:  # a checkout that was not installed
        return "0"
