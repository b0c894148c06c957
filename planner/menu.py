"""The options that are worth a choice: of those a request allows, the ones that no other beats."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from planner.profile import Activation, Option, Profile


def allowed_menu(profile: Profile, may_use: Callable[[str], bool]) -> Profile:
    """The profile with only those options of each activation that are allowed, and that no allowed one beats in all their bytes and in
    what every parameter loses. Of seconds they may have more. Options without loss all stay: they compete in time.
    """

    def of(options: tuple[Option, ...]) -> tuple[Option, ...]:
        allowed = [option for option in options if may_use(option.technique)]
        lossy = [option for option in allowed if option.lost_energy]
        kept = [o for at, o in enumerate(lossy) if not any(_beats(other, o, other_at < at) for other_at, other in enumerate(lossy))]
        return (*kept, *(option for option in allowed if not option.lost_energy))

    return _with_options(profile, of)


def lossless_menu(profile: Profile) -> Profile:
    """The profile with only those options that lose nothing."""
    return _with_options(profile, lambda options: tuple(option for option in options if not option.lost_energy))


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


def _beats(one: Option, other: Option, earlier: bool) -> bool:
    """Whether `one` is nowhere worse, and somewhere better or else earlier."""
    if one.lost_energy.keys() != other.lost_energy.keys():
        return False
    ours, theirs = (
        (o.held_bytes, o.shipped_bytes, o.compress_bytes, o.restore_bytes, *(o.lost_energy[name] for name in other.lost_energy))
        for o in (one, other)
    )
    return one is not other and all(a <= b for a, b in zip(ours, theirs, strict=True)) and (ours != theirs or earlier)
