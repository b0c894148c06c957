"""What the process keeps of memory that tensors no longer use.

glibc raises its threshold for separate mappings up to 32 MiB as large blocks are freed; from then on, freed tensors stay in a heap
that cannot shrink past its last block, and the process keeps two or three times what its tensors ever took at once. With
the threshold fixed, the process peaks where the allocator's record does, but every tensor's pages are mapped anew, which takes longer than
most operations do. So planned steps keep what is freed, and hand it back (`malloc_trim` does so inside the heap too) when an operation
would otherwise go beyond the budget. That happens less often where a freed tensor leaves a hole that the next one fits into (blocks.c).
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from memfit import native

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h
SEPARATE_BYTES = 256 * 1024  # blocks from this size on are mapped by themselves, and unmapped when freed
NEVER = 2**31 - 1
MAPPINGS = 65536  # glibc's own most


@cache
def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def return_freed_memory() -> bool:
    """Let the process give back at once what tensors no longer use; whether that was possible (with glibc alone it is)."""
    glibc = _glibc()
    if glibc is None:
        return False
    set_ = (M_MMAP_THRESHOLD, SEPARATE_BYTES), (M_TRIM_THRESHOLD, SEPARATE_BYTES), (M_MMAP_MAX, MAPPINGS)
    return all(bool(glibc.mallopt(*each)) for each in set_)


def keep_freed_memory() -> bool:
    """Let the process keep all of it in one heap, for what comes next; whether that was possible. It grows beyond what lives at once."""
    glibc = _glibc()
    kept = glibc is not None and all(bool(glibc.mallopt(*each)) for each in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER)))
    if kept:
        native.allocate_whole_blocks()
    return kept


def hand_back() -> None:
    """Give the system the pages of all that is free, wherever in the heap it lies."""
    glibc = _glibc()
    if glibc is not None:
        glibc.malloc_trim(0)


def resident_bytes() -> int:
    """The process's resident set."""
    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


_most_bytes: int | None = None  # that the process may hold while a planned step runs


@contextmanager
def within(most_bytes: int | None) -> Iterator[None]:
    """Operations inside call `make_room`, so that the process holds no more than so many bytes; None: it is not looked at."""
    global _most_bytes
    before, _most_bytes = _most_bytes, most_bytes
    try:
        yield
    finally:
        _most_bytes = before


def make_room(further_bytes: int) -> None:
    """Hand freed memory back if the process could otherwise grow beyond what it may hold."""
    if _most_bytes is not None and resident_bytes() + further_bytes > _most_bytes:
        hand_back()
