"""Work in C by several threads at once: those that torch's operations use.

They spin for some milliseconds after each of these operations before they sleep, so that other threads would find no core free. Pieces of
work go to the same team, by the call that GNU's compilers make for a parallel region; other makers' OpenMP knows it too. Where there is
none, the caller does all pieces itself.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

MOST_THREADS = 4
LEAST_PIECE = 1 << 16  # elements worth a thread of their own


def threads() -> int:
    """Pieces of work that are done at the same time."""
    return min(MOST_THREADS, torch.get_num_threads())


def by_pieces(count: int, elements: int, work: Callable[[int, int, int], None], unit: int = 1) -> None:
    """Do the work for `count` things of so many elements in all, by as many threads as it is worth.

    Args:
        work: is given the first of a piece, the end of it, and its number.
        unit: every piece but the last has a multiple of so many things.
    """
    pieces = max(1, min(threads(), elements // LEAST_PIECE))
    cuts = [count * n // pieces // unit * unit for n in range(pieces)] + [count]
    at_once(pieces, lambda piece: work(cuts[piece], cuts[piece + 1], piece))


def at_once(count: int, work: Callable[[int], None]) -> None:
    """Do the work for each of 0 … count − 1, several at the same time: it is to be in C for most of its time."""
    parallel, team = _parallel_region(), min(count, threads())
    if parallel is None or team < 2:
        for number in range(count):
            work(number)
        return
    left, errors = iter(range(count)), list[BaseException]()  # whoever is free takes the next

    def member(_: int | None) -> None:
        try:
            for number in left:
                work(number)
        except BaseException as error:  # which C cannot pass on
            errors.append(error)

    parallel(_MEMBER(member), None, team, 0)
    if errors:
        raise errors[0]


_MEMBER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _parallel_region() -> Any | None:
    """`GOMP_parallel` of the OpenMP that torch has loaded, if it can be found."""
    return getattr(ctypes.CDLL(None), "GOMP_parallel", None)
