"""Let the process give back what tensors no longer use.

glibc raises its threshold for separate mappings up to 32 MiB as large blocks are freed; from then on, freed tensors stay in a heap
that cannot shrink past its last block, and the process keeps two or three times what its tensors ever took at once. With
the threshold fixed, the process peaks where the allocator's record does.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
SEPARATE_BYTES = 256 * 1024  # blocks from this size on are mapped by themselves, and unmapped when freed


def return_freed_memory() -> bool:
    """Fix glibc's thresholds for this process; whether that was possible (glibc alone has them)."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, SEPARATE_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, SEPARATE_BYTES))
