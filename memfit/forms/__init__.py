"""The forms an activation is held in instead of whole. One file a technique."""

from collections.abc import Mapping

from memfit.forms.basis import Basis
from memfit.forms.bitmap import Bitmap
from memfit.forms.coded import Coded
from memfit.forms.form import Form, Held
from memfit.forms.hosvd import Hosvd
from memfit.forms.patch_mean import PatchMean
from memfit.forms.quantised import Bfloat16, Int4, Int8
from memfit.forms.subspace import Subspace
from memfit.forms.svd import Svd
from memfit.shipped import PREFIX, decode

__all__ = [
    "FORMS",
    "Basis",
    "Bfloat16",
    "Bitmap",
    "Coded",
    "Form",
    "Held",
    "Hosvd",
    "Int4",
    "Int8",
    "PatchMean",
    "Projection",
    "Subspace",
    "Svd",
    "form_from_settings",
]

# Forms that hold modes in directions, no more than their sizes, and can leave one of them so.
Projection = Svd | Hosvd | Basis
FORMS: Mapping[str, type[Form]] = {
    form.technique: form for form in (Svd, Hosvd, Basis, Subspace, Coded, Int8, Int4, Bfloat16, PatchMean, Bitmap)
}


def form_from_settings(technique: str, settings: Mapping[str, object]) -> Form:
    """The form that a plan names. Shipped tensors stand among the settings as `memfit.shipped` writes them.

    Raises:
        ValueError: no technique of that name holds tensors, or its settings are not those it takes.
    """
    if technique not in FORMS:
        raise ValueError(f"technique {technique!r} is not one of {', '.join(FORMS)}: this memfit is older than the checkpoint")
    values = {name: _value(value) for name, value in settings.items()}
    try:
        return FORMS[technique](**values)
    except TypeError as error:
        raise ValueError(f"technique {technique!r} with settings {', '.join(values)}: {error}") from None


def _value(value: object) -> object:
    if isinstance(value, list):
        return tuple(value)
    return decode(value) if isinstance(value, str) and value.startswith(PREFIX) else value
