"""The menu of a request against every pair of options."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from planner.menu import allowed_menu, unbeaten
from planner.profile import Activation, Form, Holder, Option, Profile, Step

options = st.builds(
    lambda technique, held, shipped, work, lost: Option(technique, {}, held, work, 0, {"w": lost} if lost else {}, 0.0, (), shipped),
    st.sampled_from(["coded", "hosvd", "recompute"]),
    st.integers(0, 4),
    st.integers(0, 2),
    st.integers(0, 1),
    st.integers(0, 4).map(float),
)


def beats(one: Option, other: Option) -> bool:
    ours, theirs = ((o.held_bytes + o.shipped_bytes, sum(o.lost_energy.values())) for o in (one, other))
    return ours[0] <= theirs[0] and ours[1] <= theirs[1] and ours != theirs


@given(st.lists(options, max_size=8))
def test_what_is_kept_is_beaten_by_none_and_beats_or_equals_all_others(menu: list[Option]) -> None:
    kept = unbeaten(menu)
    assert not any(beats(other, one) for one in kept for other in menu)
    costs = [(o.held_bytes + o.shipped_bytes, o.lost_energy) for o in kept]
    for other in menu:
        assert any(beats(one, other) for one in kept) or (other.held_bytes + other.shipped_bytes, other.lost_energy) in costs


@given(st.lists(options, max_size=8), st.sampled_from(["coded", "hosvd", "*"]))
def test_a_request_finds_the_best_of_the_techniques_it_allows(menu: list[Option], only: str) -> None:
    def may_use(technique: str) -> bool:
        return only in ("*", technique)

    form = Form("a", (0,), tuple(menu))
    activation = Activation("a", 0, (1,), "float32", 4, 0, 0, (Holder(0, "weight", "w"),), (form,))
    profile = Profile("", "mse", "frozen", 0, (), (Step(1, (), (activation,), (), {}),), (), 0, 0.0)
    found = allowed_menu(profile, may_use).whole.activations[0].forms[0].options
    allowed = [option for option in menu if may_use(option.technique)]
    assert all(option in allowed for option in found)
    assert [o for o in found if not o.lost_energy] == [o for o in allowed if not o.lost_energy]
    for other in (option for option in allowed if option.lost_energy):
        assert any(cost(one) == cost(other) or no_worse(one, other) for one in found if one.lost_energy)
    lossy = [option for option in found if option.lost_energy]
    assert not any(no_worse(one, other) for one in lossy for other in lossy if one is not other)
    again = allowed_menu(replace(profile, steps=allowed_menu(profile, may_use).steps), may_use)
    assert again.whole.activations[0].forms[0].options == found


def cost(option: Option) -> tuple[float, ...]:
    return (option.held_bytes, option.shipped_bytes, option.compress_bytes, *option.lost_energy.values())


def no_worse(one: Option, other: Option) -> bool:
    return all(a <= b for a, b in zip(cost(one), cost(other), strict=True))
