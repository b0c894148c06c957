"""The choice against enumeration of every plan, and the timeline against a plain walk through the step."""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InfeasibleBudget, NothingTrainable
from planner.footprint import timeline
from planner.integer_program import IntegerProgram
from planner.lazy_program import Limits
from planner.plan import Correction, Schedule
from planner.profile import Activation, Form, Holder, Moment, Operation, Option, Parameter, Profile, Step
from planner.request import Budget, Optimizer, PlanRequest
from planner.schedules import NOTICEABLE, divided, undivided
from planner.search import UNHURRIED
from planner.solver import solve
from planner.timeline import Choices, exact_choices, losses
from planner.trainable import weights
from tests.planner.profiles import small_profiles
from tests.reference.footprint import every_plan, footprint, lost_share, seconds, step_of

optimizers = st.sampled_from([Optimizer(), Optimizer("sgd", 0.9), Optimizer("adam")])


def request(budget_bytes: int, optimizer: Optimizer, **rest: object) -> PlanRequest:
    return PlanRequest(Budget(amount_bytes=budget_bytes), optimizer, **rest)  # type: ignore[arg-type]


def schedules(profile: Profile, request: PlanRequest) -> list[Schedule]:
    return undivided(profile, request) + divided(profile, request, frozenset(p.name for p in profile.parameters))


def divisions(profile: Profile) -> list[Schedule]:
    """Every way to divide the model."""
    some = [splits for n in range(1, len(profile.splits) + 1) for splits in combinations(profile.splits, n)]
    return [Schedule(4, early, splits, step.batch_size) for splits in some for step in profile.steps for early in (False, True)]


@given(profile=small_profiles(), optimizer=optimizers, data=st.data())
@settings(deadline=None, max_examples=300)
def test_the_timeline_is_a_walk_through_the_step(profile: Profile, optimizer: Optimizer, data: st.DataObject) -> None:
    schedule = data.draw(st.sampled_from(undivided(profile, request(1, optimizer)) + divisions(profile)))
    plans = list(every_plan(step_of(profile, schedule), [p.name for p in profile.parameters]))
    choices = data.draw(st.sampled_from(plans))
    footprints = timeline(profile, optimizer, schedule).predict(choices)
    assert {f.moment: f.total_bytes for f in footprints} == footprint(profile, choices, optimizer, schedule)
    assert all(sum(f.saved_by_technique.values()) == f.saved_bytes for f in footprints)


@given(profile=small_profiles())
@settings(deadline=None, max_examples=300)
def test_splits_leave_the_choices_that_do_not_cross_them(profile: Profile) -> None:
    for schedule in divisions(profile):
        assert timeline(profile, Optimizer(), schedule).step.activations == step_of(profile, schedule).activations


@dataclass(frozen=True)
class Enumerated:
    """One plan of all there are."""

    schedule: Schedule
    peak_bytes: int
    lost: float
    seconds: float


def enumerated(profile: Profile, request: PlanRequest) -> list[Enumerated]:
    if request.own_loop:  # whose optimizer takes no rows
        profile = replace(profile, steps=tuple(replace(step, rows={}) for step in profile.steps))
    trainable = [p.name for p in profile.parameters]
    return [
        Enumerated(
            schedule,
            max(footprint(profile, choices, request.optimizer, schedule).values()),
            lost_share(profile, step, trainable, choices),
            seconds(profile, choices, schedule),
        )
        for schedule in schedules(profile, request)
        for step in [step_of(profile, schedule)]
        for choices in every_plan(step, trainable)
    ]


@given(profile=small_profiles(), data=st.data())
@settings(deadline=None, max_examples=300)
def test_the_program_loses_what_its_choices_lose(profile: Profile, data: st.DataObject) -> None:
    names = [p.name for p in profile.parameters]
    choices = data.draw(st.sampled_from(list(every_plan(profile.whole, names))))
    assert by_program(profile, choices) == pytest.approx(lost_share(profile, profile.whole, names, choices), abs=1e-6)


def by_program(profile: Profile, choices: Choices) -> float:
    """What choices lose, by the integer program in which all is decided as they have it."""
    program = IntegerProgram(timeline(profile, Optimizer(), Schedule(4)), weights(profile, request(1, Optimizer())), 1.0)
    values = program.timeline.variables(choices)
    solved = program.relaxed(Limits(10**6), {int(column): float(values[column]) for column in np.flatnonzero(program.rows.integral)})
    assert solved is not None
    return float(solved.values[program.rows.losses : program.rows.peak].sum())


@given(profile=small_profiles(), optimizer=optimizers, budget_bytes=st.integers(1, 60), own_loop=st.booleans())
@settings(deadline=None, max_examples=500)
def test_the_plan_is_the_best_that_fits(profile: Profile, optimizer: Optimizer, budget_bytes: int, own_loop: bool) -> None:
    asked = request(budget_bytes, optimizer, own_loop=own_loop)
    plans = enumerated(profile, asked)
    fitting = [plan for plan in plans if plan.peak_bytes <= budget_bytes]
    if not fitting:
        with pytest.raises(InfeasibleBudget) as caught:
            solve(profile, asked)
        assert caught.value.least_budget_bytes == min(plan.peak_bytes for plan in plans)
        return
    plan, least = solve(profile, asked), min(plan.lost for plan in fitting)
    assert plan.predicted_peak_bytes <= budget_bytes
    assert plan.fidelity == pytest.approx(1 - least, abs=3e-3)
    assert plan.bound >= 1 - least - 1e-6
    if least == 0:
        assert plan.fidelity == pytest.approx(1.0, abs=1e-9)
        fastest = min(plan.seconds for plan in fitting if plan.lost == 0)
        plain = seconds(profile, exact_choices(profile.whole, frozenset(p.name for p in profile.parameters)), Schedule(4))
        slowest = max(UNHURRIED * plain, fastest * (1 + 2 * NOTICEABLE) + 0.05)  # the price of an option, and the gap
        assert plan.predicted_seconds <= slowest


FOLD = Option("fold", {}, 0, 0, 0, {}, 0.0, by_gradient_of="w1")


def lossy(held: int, lost: dict[str, float], folded: dict[str, float]) -> Option:
    return Option("hosvd", {}, held, 0, 0, lost, 0.0, folded_energy=folded)


def convolution_and_norm(read: Activation, of_norm: tuple[Option, ...]) -> Profile:
    """An operation, a convolution that reads what it makes, and a norm that alone holds what the convolution makes."""
    made = Activation("op1", 1, (8,), "float32", 8, 1, 2, (Holder(2, "weight", "w2"),), (Form("op1", (0,), of_norm),))
    operations = tuple(Operation(f"op{i}", "op", (i - 1,) if i else (), (f"w{i}",), 0, 0, 0, None) for i in range(3))
    return Profile(
        graph="graph",
        loss="mse",
        batch_norm="frozen",
        static_bytes=0,
        parameters=tuple(Parameter(f"w{i}", (1,), 1, 10.0) for i in range(3)),
        steps=(Step(4, operations, (read, made), (), {}),),
        splits=(),
        plain_peak_bytes=100,
        plain_seconds=1.0,
    )


def test_what_a_form_loses_itself_and_what_a_fold_loses_with_it_add_up() -> None:
    held = Form("op0", (0, 1), (lossy(1, {"w1": 1.0, "w2": 2.0}, {"w2": 4.0}),))
    holders = Holder(1, "gradient"), Holder(1, "weight", "w1")  # so its error travels on
    profile = convolution_and_norm(Activation("op0", 0, (8,), "float32", 8, 0, 1, holders, (held,)), (FOLD,))
    both = {(0, 0): 0, (1, 0): 0}
    choices = Choices(frozenset({"w1", "w2"}), frozenset(), both)
    assert losses(profile.whole, choices) == {(0, 0): {"w1": 1.0, "w2": 6.0}, (1, 0): {}}
    assert losses(profile.whole, Choices(frozenset({"w1"}), frozenset({1}), {(0, 0): 0})) == {(0, 0): {"w1": 1.0}}
    assert by_program(profile, choices) == pytest.approx((10 + 1 + 6) / 30)


def test_a_norm_that_folds_loses_what_its_convolution_loses() -> None:
    """Where the convolution's input is held with loss, the norm may fold for no bytes, or hold its own input with less loss."""
    options = lossy(1, {"w1": 1.0}, {"w2": 8.0}), lossy(6, {"w1": 0.5}, {"w2": 0.25})
    read = Activation("op0", 0, (8,), "float32", 8, 0, 1, (Holder(1, "weight", "w1"),), (Form("op0", (0,), options),))
    profile = convolution_and_norm(read, (lossy(3, {"w2": 1.0}, {}), FOLD))
    chosen = {}
    for budget_bytes in (6, 8, 19):
        asked = request(budget_bytes, Optimizer())
        plan = solve(profile, asked)
        fitting = [plan.lost for plan in enumerated(profile, asked) if plan.peak_bytes <= budget_bytes]
        assert plan.fidelity == pytest.approx(1 - min(fitting), abs=3e-3)
        chosen[budget_bytes] = [(each.technique, each.held_bytes) for each in plan.activations]
    assert chosen == {6: [("hosvd", 1), ("hosvd", 3)], 8: [("hosvd", 6), ("fold", 0)], 19: [("keep", 8), ("keep", 8)]}


@given(profile=small_profiles(), optimizer=optimizers)
@settings(deadline=None, max_examples=50)
def test_what_is_called_least_is_planned(profile: Profile, optimizer: Optimizer) -> None:
    with pytest.raises(InfeasibleBudget) as caught:
        solve(profile, request(1, optimizer))
    plan = solve(profile, request(caught.value.least_budget_bytes, optimizer))
    assert plan.predicted_peak_bytes == caught.value.least_budget_bytes


@given(profile=small_profiles(), budgets=st.tuples(st.integers(1, 60), st.integers(1, 60)))
@settings(deadline=None, max_examples=50)
def test_more_budget_never_harms(profile: Profile, budgets: tuple[int, int]) -> None:
    fidelities = []
    for budget_bytes in sorted(budgets):
        try:
            fidelities.append(solve(profile, request(budget_bytes, Optimizer())).fidelity)
        except InfeasibleBudget:
            fidelities.append(0.0)
    assert fidelities[0] <= fidelities[1] + 2e-3


@given(profile=small_profiles(), extra=st.integers(1, 20))
@settings(deadline=None, max_examples=50)
def test_a_correction_leaves_that_much_room(profile: Profile, extra: int) -> None:
    exact = exact_choices(profile.whole, frozenset(p.name for p in profile.parameters))
    moment, here, elsewhere = Moment("forward", profile.whole.operations[-1].name), Schedule(4), Schedule(4, early_updates=True)
    corrections = (Correction(here, moment, extra), Correction(elsewhere, moment, 1000))
    before, after = (timeline(profile, Optimizer(), here, c).predict(exact) for c in ((), corrections))
    for was, is_now in zip(before, after, strict=True):
        assert is_now.total_bytes - was.total_bytes == (extra if was.moment == moment else 0)


@given(profile=small_profiles())
@settings(deadline=None, max_examples=30)
def test_what_the_request_forbids_is_not_done(profile: Profile) -> None:
    with pytest.raises(NothingTrainable):
        solve(profile, request(1000, Optimizer(), trainable=("no_such_layer",)))
    plan = solve(profile, request(1000, Optimizer(), trainable=("w0",), techniques=("keep",)))
    assert {p.name for p in plan.parameters if p.trained} == {"w0"}
    assert {choice.technique for choice in plan.activations} <= {"keep", "not needed"}
