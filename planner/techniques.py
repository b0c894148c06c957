"""The menu: which ways there are to hold an activation, and what each costs, from shapes and spectra alone."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import prod

from torch import Tensor

from memfit.bits import PIECE, packed_bytes
from memfit.forms import Form, Hosvd, Svd
from memfit.operators.held import samples_at_once
from memfit.shipped import encode, tensors_of
from memfit.tucker import rank_for_threshold
from planner.profile import Setting
from planner.spectra import Spectra

CODED_SHARES = (1 / 4, 1 / 6, 1 / 8, 1 / 12, 1 / 16, 1 / 24, 1 / 40, 1 / 80)  # of the bytes of the whole
HOSVD_THRESHOLDS = (0.8, 0.9, 0.95, 0.99)
SVD_THRESHOLDS = (0.8, 0.95)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A form for one value, before its lost energy is measured. Bytes are upper limits."""

    form: Form
    held_bytes: int
    compress_bytes: int
    restore_bytes: int
    shipped_bytes: int

    @property
    def bytes(self) -> int:
        return self.held_bytes + self.shipped_bytes


def candidates(spectra: Spectra) -> list[Candidate]:
    """Every form worth measuring: smaller than the value, and no two of the same bytes; in order of bytes.

    A threshold becomes ranks by the mean spectra; these are the caps, so bytes are known whatever comes.
    """
    shape, itemsize = spectra.shape, spectra.itemsize
    whole = itemsize * prod(shape)
    forms: list[Form] = [form for share in CODED_SHARES if (form := spectra.coding.form(int(whole * share)))]
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
    by_bytes = {candidate.bytes: candidate for candidate in (_candidate(form, shape, itemsize) for form in forms)}
    return [candidate for size, candidate in sorted(by_bytes.items()) if size < whole]


def _candidate(form: Form, shape: tuple[int, ...], itemsize: int) -> Candidate:
    held = form.held_bytes(shape, itemsize)
    restore = form.restore_bytes(shape, itemsize, samples_at_once(shape, itemsize))
    shipped = sum(tensor.nbytes for tensor in tensors_of(form).values())
    return Candidate(form, held, max(0, form.compress_bytes(shape, itemsize) - held), restore, shipped)


def settings_of(form: Form) -> dict[str, Setting]:
    """A form's settings, with a name in place of each tensor."""
    values = {field.name: getattr(form, field.name) for field in fields(form)}  # type: ignore[arg-type]
    return {name: _name(value) if isinstance(value, Tensor) else value for name, value in values.items() if value is not None}


def shipped_tensors(forms: Iterable[Form]) -> dict[str, str]:
    """The tensors that settings name, as `memfit.shipped` writes them."""
    return {_name(tensor): encode(tensor) for form in forms for tensor in tensors_of(form).values()}


def _name(tensor: Tensor) -> str:
    return "tensor " + hashlib.sha256(encode(tensor).encode()).hexdigest()[:16]


def mask_bytes(elements: int) -> tuple[int, int]:
    """Bytes held for one bit an element, and the transient bytes of packing or using it."""
    return packed_bytes(elements), 9 * min(elements, PIECE)
