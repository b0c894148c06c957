"""The options that are worth a choice: of those a request allows, the ones that no other beats."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from planner.profile import Activation, Option, Profile


def allowed_menu(profile: Profile, may_use: Callable[[str], bool]) -> Profile:
    """The profile with only those options of each activation that are allowed, and that no allowed one beats in all their bytes and in
    what every parameter loses. Of seconds they may have more. Options without loss all stay: they compete in time.
    """

    def of(options: tuple[Option, ...]) -> tuple[Option, ...]:
        allowed = [option for option in options if may_use(option.technique)]
        groups: dict[frozenset[str], list[Option]] = {}
        for option in allowed:
            groups.setdefault(frozenset(option.lost_energy), []).append(option)
        lossless = groups.pop(frozenset(), [])
        return (*(option for group in groups.values() for option in _unbeaten_in_all(group)), *lossless)

    return _with_options(profile, of)


def lossless_menu(profile: Profile) -> Profile:
    """The profile with only those options that lose nothing."""
    return _with_options(profile, lambda options: tuple(option for option in options if not option.lost_energy))


def lossy_techniques(profile: Profile) -> set[str]:
    """Those of options that lose something of other data, whatever they lose of the sample."""
    forms = (form for step in profile.steps for activation in step.activations for form in activation.forms)
    return {option.technique for form in forms for option in form.options if option.lost_energy}


def _with_options(profile: Profile, of: Callable[[tuple[Option, ...]], tuple[Option, ...]]) -> Profile:
    def activation(each: Activation) -> Activation:
        return replace(each, forms=tuple(replace(form, options=of(form.options)) for form in each.forms))

    steps = (replace(step, activations=tuple(map(activation, step.activations))) for step in profile.steps)
    return replace(profile, steps=tuple(steps))


def unbeaten(options: Iterable[Option]) -> list[Option]:
    """Those that no other beats: of as few bytes, held and shipped, and of less lost energy. In order of bytes."""
    kept: list[Option] = []
    least = float("inf")
    for option in sorted(options, key=lambda o: (o.held_bytes + o.shipped_bytes, sum(o.lost_energy.values()))):
        lost = sum(option.lost_energy.values())
        if lost < least:
            kept.append(option)
            least = lost
    return kept


def _unbeaten_in_all(options: list[Option]) -> list[Option]:
    """Of options that lose of the same parameters, those that no other is nowhere worse than; of equal ones the first."""
    names, folded = list(options[0].lost_energy), list(options[0].folded_energy)
    costs_OC = np.array(
        [
            (
                *(o.held_bytes, o.shipped_bytes, o.compress_bytes, o.restore_bytes),
                *(o.lost_energy[name] for name in names),
                *(o.folded_energy[name] for name in folded),
            )
            for o in options
        ]
    )
    no_worse_OO = (costs_OC[:, None] <= costs_OC[None]).all(2)  # the row's option than the column's
    beats_OO = no_worse_OO & (~no_worse_OO.T | np.triu(no_worse_OO, 1))
    return [options[at] for at in np.flatnonzero(~beats_OO.any(0))]
