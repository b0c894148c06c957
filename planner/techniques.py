"""The menu: which ways there are to hold an activation, and what each costs, from shapes and spectra alone."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cache
from math import prod
from time import perf_counter

import torch
from torch import Tensor

from memfit.bits import PIECE, packed_bytes, rectify, scale_by_bits
from memfit.forms import Basis, Bfloat16, Bitmap, Coded, Form, Hosvd, Int4, Int8, PatchMean, Subspace, Svd
from memfit.forms.quantised import GROUP
from memfit.shipped import encode, tensors_of
from memfit.tucker import rank_for_threshold
from planner.above_zero import room_above_zero
from planner.coding import FREE_PRODUCTS
from planner.profile import Setting
from planner.spectra import Spectra

CODED_SHARES = (1 / 4, 1 / 6, 1 / 8, 1 / 12, 1 / 16, 1 / 24, 1 / 40, 1 / 80)  # of the bytes of the whole
BITMAP_BITS = (None, 8, 4)  # of the elements above zero
HOSVD_THRESHOLDS, SVD_THRESHOLDS = (0.8, 0.95), (0.9,)
HOSVD_SHARES, BASIS_SHARES, SUBSPACE_SHARES = (1 / 20, 1 / 100), (1 / 20, 1 / 100), (1 / 20, 1 / 100)
EVERY = 8  # passes, in which directions that follow the data are refreshed once
GIVEN = 0.4  # of the least energy that fixed directions lose, for fewer products, where the holder has next to none of its own


@dataclass(frozen=True, slots=True)
class Candidate:
    """A form for one value, before its lost energy is measured. Bytes are upper limits."""

    form: Form
    held_bytes: int
    compress_bytes: int
    shipped_bytes: int

    @property
    def bytes(self) -> int:
        return self.held_bytes + self.shipped_bytes


def candidates(spectra: Spectra, of_any_shape: bool = False) -> list[Candidate]:
    """Every form worth measuring: smaller than the value, and no two of a technique of the same bytes; in order of bytes.

    Args:
        of_any_shape: what follows the first axis is of another shape for each number of samples. Then elements are held by themselves.
    """
    forms = by_element(spectra) if of_any_shape else [*by_directions(spectra), *by_element(spectra), *by_places(spectra)]
    shape, itemsize = spectra.shape, spectra.itemsize
    by_bytes = {(each.bytes, each.form.technique): each for each in (candidate(form, shape, itemsize) for form in forms)}
    return [each for (size, _), each in sorted(by_bytes.items(), key=lambda item: item[0]) if size < itemsize * prod(shape)]


def by_element(spectra: Spectra) -> list[Form]:
    """Fewer bits for each element, whatever its place."""
    forms: list[Form] = [Int8(), Int4()] if prod(spectra.shape[1:]) >= GROUP // 4 else []
    return [*forms, Bfloat16()] if spectra.itemsize > 2 else forms


def by_places(spectra: Spectra) -> list[Form]:
    """Elements above zero in bits and codes, and means of patches."""
    shape = spectra.shape
    forms: list[Form] = [PatchMean((2,) * (len(shape) - 2))] if spectra.coding.feature == 1 and len(shape) > 2 else []
    if spectra.above_zero:
        forms += [Bitmap(*room_above_zero(spectra.above_zero), bits) for bits in BITMAP_BITS]
    return forms


def by_directions(spectra: Spectra) -> list[Form]:
    """Few directions of the value, or few codes of its coefficients.

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
    best = (spectra.ranks(int(whole * share) // itemsize) for share in HOSVD_SHARES)
    forms += [Hosvd((shape[0], *each), 1.0) for each in best if each is not None]
    forms += [basis for share in BASIS_SHARES if (basis := basis_form(spectra, int(whole * share)))]
    forms += [moving for share in SUBSPACE_SHARES if (moving := subspace_form(spectra, int(whole * share)))]
    return forms


def subspace_form(spectra: Spectra, most_bytes: int, every: int = EVERY) -> Subspace | None:
    """As `basis_form`, with the factors held too."""
    basis = basis_form(spectra, most_bytes, factors_held=True)
    return None if basis is None else Subspace(basis.sizes, basis.ranks, basis.factors, every)


def basis_form(spectra: Spectra, most_bytes: int, factors_held: bool = False) -> Basis | None:
    """Factors of ranks that keep nearly the most in these bytes, those that are shipped (of two bytes an element) and held included."""
    nearly = 1 + GIVEN * FREE_PRODUCTS / spectra.coding.products_worth
    ranks = spectra.ranks(most_bytes // spectra.itemsize, 2 / spectra.itemsize + factors_held, nearly)
    if ranks is None:
        return None
    sizes = spectra.shape[1:]
    used = [mode for mode, (size, rank) in enumerate(zip(sizes, ranks, strict=True), start=1) if rank < size]
    factors = [spectra.factors[mode][:, : ranks[mode - 1]].half().flatten() for mode in used]
    return Basis(sizes, ranks, torch.cat(factors)) if factors else None


def candidate(form: Form, shape: tuple[int, ...], itemsize: int) -> Candidate:
    """A form for a value of that shape."""
    held = form.held_bytes(shape, itemsize)
    shipped = sum(tensor.nbytes for tensor in tensors_of(form).values())
    if isinstance(form, Coded):
        shipped += form.table_bytes(shape, itemsize)
    return Candidate(form, held, max(0, form.compress_bytes(shape, itemsize) - held), shipped)


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


@cache
def _mask_seconds_per_element() -> float:
    """Time that bits take beyond a native rectifier, forward and backward, for each element."""
    x = torch.randn(1 << 20)

    def seconds(work: Callable[[], object]) -> float:
        work()
        started = perf_counter()
        for _ in range(3):
            work()
        return (perf_counter() - started) / 3

    def by_torch() -> Tensor:
        result: Tensor = torch.ops.aten.hardtanh_backward(x.clamp(0.0, 6.0), x, 0.0, 6.0)
        return result

    with torch.no_grad():
        by_bits = seconds(lambda: scale_by_bits(*rectify(x, 0.0, 6.0, 0.0, False), 1.0, 0.0))
        return max(0.0, by_bits - seconds(by_torch)) / x.numel()


def mask_seconds(elements: int) -> float:
    """Seconds a step that holding bits takes beyond holding the whole tensor."""
    return _mask_seconds_per_element() * elements
