"""The menu: which ways there are to hold an activation, and what each costs, from shapes and spectra alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from time import perf_counter

import torch

from memfit.bits import PIECE, pack_between, packed_bytes, scale_by_bits
from memfit.forms import Form, Hosvd, Svd
from memfit.operators.held import samples_at_once
from memfit.tucker import rank_for_threshold
from planner.spectra import Spectra

HOSVD_THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
SVD_THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A form for one value, before its lost energy is measured. Bytes are upper limits."""

    form: Form
    held_bytes: int
    compress_bytes: int
    restore_bytes: int


def candidates(spectra: Spectra) -> list[Candidate]:
    """Every form worth measuring: smaller than the value, and no two of the same bytes.

    A threshold becomes ranks by the mean spectra; these are the caps, so bytes are known whatever comes.
    """
    shape, itemsize = spectra.shape, spectra.itemsize
    whole = itemsize * prod(shape)
    forms: list[Form] = []
    for threshold in HOSVD_THRESHOLDS:
        ranks = tuple(
            rank_for_threshold(spectra.of[mode, mode + 1], threshold) if (mode, mode + 1) in spectra.of else size
            for mode, size in enumerate(shape)
        )
        forms.append(Hosvd(ranks, threshold))
    for threshold in SVD_THRESHOLDS:
        each = [Svd(run, rank_for_threshold(energies, threshold), threshold) for run, energies in spectra.of.items()]
        if each:  # the best matricisation: the one that needs the fewest bytes for this energy
            forms.append(min(each, key=lambda form: form.held_bytes(shape, itemsize)))
    by_bytes = {form.held_bytes(shape, itemsize): form for form in forms}
    return [candidate(form, shape, itemsize) for held, form in sorted(by_bytes.items()) if held < whole]


def candidate(form: Form, shape: tuple[int, ...], itemsize: int) -> Candidate:
    """A form for a value of that shape."""
    held = form.held_bytes(shape, itemsize)
    samples = samples_at_once(shape, itemsize)
    return Candidate(form, held, max(0, form.compress_bytes(shape, itemsize) - held), form.restore_bytes(shape, itemsize, samples))


def mask_bytes(elements: int) -> tuple[int, int]:
    """Bytes held for one bit an element, and the transient bytes of packing or using it."""
    return packed_bytes(elements), 9 * min(elements, PIECE)


@cache
def _mask_seconds_per_piece() -> float:
    """Time that bits take beyond a native rectifier, forward and backward, measured on one piece."""
    x = torch.randn(PIECE)

    def seconds(work: Callable[[], object]) -> float:
        work()
        started = perf_counter()
        for _ in range(3):
            work()
        return (perf_counter() - started) / 3

    with torch.no_grad():
        bits = seconds(lambda: scale_by_bits(x, pack_between(x, 0.0, 6.0), 1.0, 0.0))
        return max(0.0, bits - seconds(lambda: torch.ops.aten.hardtanh_backward(x, x, 0.0, 6.0)))


def mask_seconds(elements: int) -> float:
    """Seconds a step that holding bits takes beyond holding the whole tensor."""
    return _mask_seconds_per_piece() * elements / PIECE
