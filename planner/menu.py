"""The options that are worth a choice: of those a request allows, the ones that no other beats in bytes and in lost energy."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from planner.profile import Activation, Option, Profile


def allowed_menu(profile: Profile, may_use: Callable[[str], bool]) -> Profile:
    """The profile with only those options of each activation that are allowed and that no allowed one beats.

    Options without loss stay, beaten or not: what they cost is not their bytes alone.
    """

    def of(activation: Activation) -> Activation:
        forms = []
        for form in activation.forms:
            allowed = [option for option in form.options if may_use(option.technique)]
            lossy = {id(option) for option in unbeaten(option for option in allowed if option.lost_energy)}
            forms.append(replace(form, options=tuple(option for option in allowed if not option.lost_energy or id(option) in lossy)))
        return replace(activation, forms=tuple(forms))

    steps = (replace(step, activations=tuple(map(of, step.activations))) for step in profile.steps)
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
