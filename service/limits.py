"""What a stage's process may take of the machine, and how it takes it upon itself before it does anything."""

import os
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MEMORY_SHARE = 0.9  # of the machine's, for one process of a stage: the rest is the service's
PROCESSES = 512  # and threads, of a stage and all it starts: measuring takes two processes with a pool of threads each
NEVER_MORE = 2**62
NICENESS = 5  # answers come before stages; where nobody asks, it costs nothing
SECONDS_TO_SAY_SO = 5  # between the signal that tells what ends a process, SIGXCPU, and the one that tells nothing


@dataclass(frozen=True, slots=True)
class Limits:
    """Most that a stage may take.

    Attributes:
        memory_bytes: of private memory in each process: RLIMIT_DATA. Address space would say little: torch reserves more than it uses.
        cpu_seconds: of each process.
        file_bytes: of each file it writes.
        processes: that the service's user may have more while it runs. The system does not hold root to that.
        wall_seconds: from its start to its end; time in the queue is not counted.
    """

    memory_bytes: int
    cpu_seconds: int
    file_bytes: int
    processes: int
    wall_seconds: float


def limits_for(memory_bytes: int | None, wall_seconds: float, file_bytes: int) -> Limits:
    """Limits of this machine: all of its memory but what the service needs, and its cores for as long as a stage may run."""
    cores = os.cpu_count() or 1
    memory = memory_bytes or int(machine_memory_bytes() * MEMORY_SHARE)
    return Limits(memory, int(wall_seconds * cores) + 1, file_bytes, PROCESSES, wall_seconds)


def machine_memory_bytes() -> int:
    """Memory of the machine, or of the control group the service is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int(Path(file).read_text()))
    return total


def keep_to(limits: Limits) -> None:
    """Bind this process, and all it will start, to the limits, and let the service go first. Linux; elsewhere as far as the system goes."""
    os.nice(NICENESS)
    for name, most, last in (
        ("RLIMIT_DATA", limits.memory_bytes, 0),
        ("RLIMIT_CPU", limits.cpu_seconds, SECONDS_TO_SAY_SO),
        ("RLIMIT_FSIZE", limits.file_bytes, 0),
        ("RLIMIT_NPROC", _running_tasks() + limits.processes, 0),
        ("RLIMIT_CORE", 0, 0),
    ):
        if (number := getattr(resource, name, None)) is not None:
            _, hard = resource.getrlimit(number)
            hard = hard if hard != resource.RLIM_INFINITY else NEVER_MORE
            resource.setrlimit(number, (min(most, hard), min(most + last, hard)))


def _running_tasks() -> int:
    """Processes and threads of this user: what RLIMIT_NPROC counts."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.stat().st_uid == os.getuid():
                found += sum(1 for _ in (process / "task").iterdir())
    return found
