"""Branch and bound against enumeration, where no schedule is proved before its parameters are decided."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import branching
from planner.branching import Branching
from planner.integer_program import LOSS_GAP, OPTION_PRICE, SECONDS_GAP
from planner.lazy_program import Limits
from planner.profile import Profile
from planner.request import Optimizer, PlanRequest
from planner.solver import programs_for
from tests.planner.profiles import small_profiles
from tests.reference.footprint import every_plan, footprint, lost_share, step_of


@given(profile=small_profiles(), budget_bytes=st.integers(1, 60))
@settings(deadline=None, max_examples=200)
def test_parameters_decided_one_by_one_come_to_the_least_loss(profile: Profile, budget_bytes: int) -> None:
    request = PlanRequest(None, Optimizer("sgd", 0.9))
    programs = list(programs_for(profile, request))
    least = float("inf")
    for program in programs:
        schedule, names = program.timeline.schedule, list(program.weight)
        step = step_of(profile, schedule)
        for choices in every_plan(step, names):
            if max(footprint(profile, choices, request.optimizer, schedule).values()) <= budget_bytes:
                least = min(least, lost_share(profile, step, names, choices))
    search = Branching(programs, Limits(budget_bytes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branching, "QUICK", 0.0)
        patch.setattr(branching, "QUICK_ALONE", 0.0)
        search.run(10.0, 10.0)
    if least == float("inf"):
        assert search.best is None
        return
    assert search.best is not None
    loss, program, choices = search.best
    assert loss == pytest.approx(program.loss(choices))
    assert program.timeline.peak_bytes(choices) <= budget_bytes
    assert least - 1e-6 <= loss <= least + LOSS_GAP + 1e-5
    assert loss - LOSS_GAP - 1e-5 <= search.bound <= least + 1e-5


@given(profile=small_profiles(), budget_bytes=st.integers(1, 60), data=st.data())
@settings(deadline=None, max_examples=100)
def test_what_trains_the_same_takes_about_the_least_time(profile: Profile, budget_bytes: int, data: st.DataObject) -> None:
    optimizer = Optimizer("sgd", 0.9)
    program = data.draw(st.sampled_from(list(programs_for(profile, PlanRequest(None, optimizer)))))
    names, schedule, step = list(program.weight), program.timeline.schedule, program.timeline.step
    fitting = [
        choices
        for choices in every_plan(step, names)
        if max(footprint(profile, choices, optimizer, schedule).values()) <= budget_bytes and program.seconds_of(choices) > 0
    ]
    if not fitting:
        return
    choices = data.draw(st.sampled_from(fitting))
    most = data.draw(st.sampled_from([program.loss(choices), program.loss(choices) + 0.1, 10.0])) + 1e-5
    alike = [each for each in fitting if each.trained == choices.trained and program.loss(each) <= most]
    faster = program.faster(choices, Limits(budget_bytes, loss=most))
    if faster is not None:
        assert faster.trained == choices.trained
        assert program.timeline.peak_bytes(faster) <= budget_bytes
        assert program.loss(faster) <= most + 1e-5
    about = program.plain_seconds * (SECONDS_GAP + OPTION_PRICE * len(program.rows.options)) + 1e-6
    assert program.seconds_of(faster or choices) <= min(map(program.seconds_of, alike)) + about


@given(profile=small_profiles(), budgets=st.lists(st.integers(1, 60), min_size=2, max_size=4))
@settings(deadline=None, max_examples=100)
def test_what_other_budgets_tell_is_no_more_than_is_lost(profile: Profile, budgets: list[int]) -> None:
    *others, budget_bytes = budgets
    for program in programs_for(profile, PlanRequest(None, Optimizer("sgd", 0.9))):
        relaxed = [program.relaxed(Limits(other), {}) for other in others]
        told = program.known_bound(Limits(budget_bytes))
        here = program.relaxed(Limits(budget_bytes), {})
        if here is not None:
            assert told <= here.costs + 1e-6
            if budget_bytes in others:
                assert told >= here.costs - 1e-6
        elif all(other is None for other in relaxed):
            assert told == 0
