"""Keeps a stage's process away from the network and from files that are not its own.

By bubblewrap where it is found and works: no network, no other processes, and of the files only programs, what the stage reads and the
folder it works in. Else by namespaces of its own, if the system allows that: no network. `require` insists on the first, `off` on nothing.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from glob import glob
from pathlib import Path
from typing import Literal

import planner
from service.limits import NEVER_MORE, Limits, limits_for

Mode = Literal["require", "auto", "off"]
Sandbox = Literal["bubblewrap", "namespaces", "none"]
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/sys", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/alternatives")
PACKAGES = ("memfit", "planner", "service", "models")
PLACES = ("site-packages", "dist-packages")  # of other packages, which may lie outside the environment: a user's own, or what a .pth names
SECONDS_TO_TRY = 60


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a stage's process may take, and where it runs."""

    limits: Limits
    sandbox: Sandbox


def unconfined() -> Confinement:
    """All the machine has, for a day, and no sandbox."""
    return Confinement(limits_for(None, 24 * 3600, NEVER_MORE), "none")


class NoSandbox(RuntimeError):
    """A sandbox is required, and there is none."""

    def __init__(self) -> None:
        super().__init__(
            "MEMFIT_SANDBOX=require, but bubblewrap (bwrap) is not installed, or may not make namespaces here, or memfit does not start "
            "in it. Install it and allow unprivileged user namespaces, or set MEMFIT_SANDBOX=auto."
        )


def find_sandbox(mode: Mode) -> Sandbox:
    """What stages run in.

    Raises:
        NoSandbox: it is required, and bubblewrap does not work.
    """
    if mode == "off":
        return "none"
    child = (sys.executable, "-c", f"import sys; sys.path.insert(0, {str(_source())!r}); import service.child")
    if _works(("bwrap", *_arguments((), Path("/tmp")), "--", *child)):
        return "bubblewrap"
    if mode == "require":
        raise NoSandbox
    alone = f"import sys; sys.path.insert(0, {str(_source())!r}); from service.sandbox import leave_network; leave_network()"
    return "namespaces" if _works((sys.executable, "-I", "-c", alone)) else "none"


def wrapped(sandbox: Sandbox, command: Sequence[str], reads: Sequence[Path], folder: Path) -> list[str]:
    """A command that runs in the sandbox. `reads`: files it may read beside programs; `folder`: where it may write."""
    if sandbox != "bubblewrap":
        return list(command)
    return ["bwrap", *_arguments(reads, folder), "--", *command]


def leave_network() -> None:
    """Move this process, which has one thread, into a user and a network namespace of its own: it has no network then.

    Raises:
        OSError: the system does not allow that.
    """
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _arguments(reads: Sequence[Path], folder: Path) -> list[str]:
    arguments = ["--unshare-user", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    programs = [*SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, *(str(_source() / package) for package in PACKAGES)]
    programs += [path for path in sys.path if Path(path).name in PLACES]
    for path in dict.fromkeys(str(Path(program)) for program in programs):
        arguments += ["--ro-bind-try", path, path]
    for device in glob("/dev/nvidia*"):
        arguments += ["--dev-bind-try", device, device]
    for path in dict.fromkeys(map(str, reads)):
        arguments += ["--ro-bind-try", path, path]
    return [*arguments, "--bind", str(folder), str(folder), "--chdir", str(folder)]


def _source() -> Path:
    return Path(next(iter(planner.__path__))).parent


@cache
def _works(command: tuple[str, ...]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    try:
        return subprocess.run(command, capture_output=True, timeout=SECONDS_TO_TRY, stdin=subprocess.DEVNULL).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
