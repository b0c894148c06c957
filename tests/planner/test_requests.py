"""What people ask of a plan beside a budget, against enumeration of every plan; the frontier, alternatives and infeasible answers."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.alternatives import alternatives
from planner.errors import BadBudget, InfeasibleBudget
from planner.footprint import timeline, without_rows
from planner.frontier import frontier
from planner.infeasibility import ROOM
from planner.menu import lossless_menu
from planner.plan import Plan, Schedule
from planner.profile import Option, Profile, Step
from planner.request import Budget, Optimizer, PlanRequest
from planner.solver import plain_peak_bytes, programs_for, solve
from planner.timeline import exact_choices
from planner.trainable import last_layers, trainable
from tests.planner.profiles import small_profiles
from tests.planner.test_solver import Enumerated, enumerated
from tests.reference.footprint import every_plan, footprint, lost_share, seconds, step_of

FEW = settings(deadline=None, max_examples=30)
MANY = settings(deadline=None, max_examples=100)
budgets = st.integers(1, 60)


def asked(budget_bytes: int | None, **rest: object) -> PlanRequest:
    return PlanRequest(Budget(amount_bytes=budget_bytes) if budget_bytes is not None else None, **rest)  # type: ignore[arg-type]


def solved(profile: Profile, request: PlanRequest) -> Plan | None:
    try:
        return solve(profile, request)
    except InfeasibleBudget:
        return None


def plain_seconds(profile: Profile) -> float:
    return seconds(profile, exact_choices(profile.whole, frozenset(p.name for p in profile.parameters)), Schedule(4))


@given(profile=small_profiles(), budget_bytes=budgets, slowdown=st.sampled_from([1.0, 1.1, 1.5, 2.0]))
@MANY
def test_no_plan_is_slower_than_was_asked_for(profile: Profile, budget_bytes: int, slowdown: float) -> None:
    request = asked(budget_bytes, max_slowdown=slowdown)
    most = slowdown * plain_seconds(profile)
    fitting = [p for p in enumerated(profile, request) if p.peak_bytes <= budget_bytes and p.seconds <= most * (1 - 1e-6)]
    plan = solved(profile, request)
    if plan is None:
        assert not fitting
        return
    assert plan.predicted_seconds <= most * (1 + 1e-6)
    assert plan.slowdown == pytest.approx(plan.predicted_seconds / plain_seconds(profile))
    assert plan.fidelity >= max((1 - p.lost for p in fitting), default=0.0) - 3e-3


@given(profile=small_profiles(), fidelity=st.sampled_from([0.2, 0.5, 0.9, 1.0]))
@MANY
def test_the_least_budget_of_a_fidelity_is_found(profile: Profile, fidelity: float) -> None:
    request = asked(None, min_fidelity=fidelity)
    of = lossless_menu(profile) if fidelity == 1.0 else profile  # a lossy form that lost nothing of this sample may lose of the next
    reaching = [p for p in enumerated(of, request) if 1 - p.lost >= fidelity - 1e-9]
    plan = solve(profile, request)
    assert plan.budget_bytes == plan.predicted_peak_bytes == min(p.peak_bytes for p in reaching)
    assert plan.fidelity >= fidelity - 1e-6


@given(profile=small_profiles(), budget_bytes=budgets)
@FEW
def test_with_the_relative_objective_each_parameter_counts_alike(profile: Profile, budget_bytes: int) -> None:
    alike = replace(profile, parameters=tuple(replace(p, gradient_energy=1.0) for p in profile.parameters))
    energies = {p.name: p.gradient_energy for p in profile.parameters}
    steps = tuple(
        replace(
            step,
            activations=tuple(
                replace(
                    a,
                    forms=tuple(
                        replace(
                            f,
                            options=tuple(
                                replace(o, lost_energy={n: e / energies[n] for n, e in o.lost_energy.items()}) for o in f.options
                            ),
                        )
                        for f in a.forms
                    ),
                )
                for a in step.activations
            ),
        )
        for step in alike.steps
    )
    alike = replace(alike, steps=steps)
    plan, same = solved(profile, asked(budget_bytes, objective="relative")), solved(alike, asked(budget_bytes))
    assert (plan is None) == (same is None)
    if plan is not None and same is not None:
        assert plan.score == pytest.approx(same.fidelity, abs=3e-3)
        assert plan.bound >= plan.score


@given(profile=small_profiles(), budget_bytes=st.integers(20, 60), headroom=st.integers(1, 10))
@FEW
def test_headroom_is_kept_free(profile: Profile, budget_bytes: int, headroom: int) -> None:
    plan = solved(profile, asked(budget_bytes, headroom=Budget(amount_bytes=headroom)))
    same = solved(profile, asked(budget_bytes - headroom))
    assert (plan and (plan.budget_bytes, plan.fidelity)) == (same and (same.budget_bytes, same.fidelity))
    assert plan is None or plan.headroom_bytes == headroom
    shared = solved(profile, asked(100, headroom=Budget(share=0.25)))
    assert shared is None or (shared.budget_bytes, shared.headroom_bytes) == (75, 25)


def test_headroom_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(BadBudget, match="headroom"):
        asked(100, headroom=Budget(share=1.0)).budget_bytes(1000)


@given(profile=small_profiles(), data=st.data())
@FEW
def test_frozen_and_last_leave_the_rest(profile: Profile, data: st.DataObject) -> None:
    names = [p.name for p in profile.parameters]
    frozen = data.draw(st.sampled_from(names))
    last = data.draw(st.integers(1, 4))
    wide = replace(profile, parameters=tuple(replace(p, shape=(1, p.bytes)) for p in profile.parameters))
    readers = [i for i, operation in enumerate(wide.whole.operations) if operation.parameters]
    first = readers[-last] if last <= len(readers) else 0
    expected = {n for operation in wide.whole.operations[first:] for n in operation.parameters}
    assert last_layers(wide, last) == expected
    request = asked(1000, frozen=(frozen,), last=last)
    assert trainable(wide, request) == expected - {frozen}
    if expected - {frozen}:
        assert {p.name for p in solve(wide, request).parameters if p.trained} == expected - {frozen}


@given(profile=small_profiles(), optimizer=st.sampled_from([Optimizer(), Optimizer("adam")]))
@FEW
def test_the_frontier_goes_up_from_the_least_budget_to_the_plain_step(profile: Profile, optimizer: Optimizer) -> None:
    plain = max(
        footprint(profile, exact_choices(profile.whole, frozenset(p.name for p in profile.parameters)), optimizer, Schedule(4)).values()
    )
    profile = replace(profile, plain_peak_bytes=plain)
    request = replace(asked(None), optimizer=optimizer)
    points = list(frontier(programs_for(profile, request), 6))
    plans = enumerated(profile, request)
    assert points[0].budget_bytes == min(p.peak_bytes for p in plans)
    assert points[-1].budget_bytes == max(plain_peak_bytes(profile, optimizer), points[0].budget_bytes)
    assert [p.fidelity for p in points] == sorted(p.fidelity for p in points)
    for point in points:
        best = max(1 - p.lost for p in plans if p.peak_bytes <= point.budget_bytes)
        assert point.predicted_peak_bytes <= point.budget_bytes
        assert point.fidelity <= best + 1e-9
        assert point.bound >= best - 1e-6
    if points[-1].budget_bytes >= plain:
        assert points[-1].fidelity == pytest.approx(1.0)


def by_hand(profile: Profile, size: int, name: str, budget_bytes: int) -> Enumerated | None:
    """The best plain step of a kind of alternatives: of a batch size, or of the last layers kept whole."""
    static_bytes = profile.static_bytes - profile.batch_bytes * (profile.whole.batch_size - size) // profile.whole.batch_size
    steps = tuple(step for step in profile.steps if step.batch_size == size)
    alone = without_rows(replace(profile, steps=steps, splits=(), static_bytes=static_bytes))
    names = [p.name for p in profile.parameters]
    sets = [last_layers(alone, n) for n in range(1, 5)] if name == "last_layers" else [frozenset(names)]
    found = []
    for trained in sets:
        choices = exact_choices(alone.whole, trained)
        schedule = Schedule(size)
        peak = max(timeline(alone, Optimizer(), schedule).bytes(choices).sum(0))
        found.append(Enumerated(schedule, int(peak), lost_share(alone, alone.whole, names, choices), 0.0))
    fitting = [each for each in found if each.peak_bytes <= budget_bytes]
    return min(fitting, key=lambda each: each.lost, default=None)


@given(profile=small_profiles(), budget_bytes=budgets)
@MANY
def test_alternatives_are_the_best_of_their_kind(profile: Profile, budget_bytes: int) -> None:
    profile = replace(profile, parameters=tuple(replace(p, shape=(1, p.bytes)) for p in profile.parameters))
    request = asked(budget_bytes)
    plan = solved(profile, request)
    assume(plan is not None)
    assert plan is not None
    lossless, batch, last, epsilon = alternatives(profile, request, plan)
    assert [each.name for each in (lossless, batch, last, epsilon)] == ["lossless", "smaller_batch", "last_layers", "one_epsilon"]
    for each in (lossless, batch, last, epsilon):
        assert each.predicted_peak_bytes <= budget_bytes
    exact = [p for p in lossless_plans(profile, request) if p.peak_bytes <= budget_bytes]
    assert lossless.fits == bool(exact)
    assert lossless.fidelity == pytest.approx(max((1 - p.lost for p in exact), default=0.0), abs=3e-3)
    sizes = [step.batch_size for step in profile.steps if by_hand(profile, step.batch_size, "smaller_batch", budget_bytes)]
    assert batch.facts.get("batch_size") == max(sizes, default=None)
    wanted = by_hand(profile, 4, "last_layers", budget_bytes)
    assert last.fits == (wanted is not None)
    assert wanted is None or last.fidelity == pytest.approx(1 - wanted.lost)


@given(profile=small_profiles(), budget_bytes=budgets, gain=st.integers(0, 2))
@MANY
def test_one_epsilon_is_the_same_beside_better_techniques(profile: Profile, budget_bytes: int, gain: int) -> None:
    def menu(better: bool) -> Profile:
        def of(options: tuple[Option, ...]) -> tuple[Option, ...]:
            papers = tuple(replace(o, settings={"threshold": 0.8}) for o in options if o.technique == "hosvd")[:1]
            beating = tuple(replace(o, technique="coded", settings={}, held_bytes=max(0, o.held_bytes - gain)) for o in papers)
            return (*(beating if better else ()), *papers, *(o for o in options if o.technique != "hosvd"))

        wide = tuple(replace(p, shape=(1, p.bytes)) for p in profile.parameters)
        return replace(profile, parameters=wide, steps=tuple(with_menu(step, of) for step in profile.steps))

    plan = solved(menu(True), asked(budget_bytes))
    assume(plan is not None)
    assert plan is not None
    beside, alone = (alternatives(menu(better), asked(budget_bytes), plan)[3] for better in (True, False))
    assert beside == alone


def with_menu(step: Step, of: Callable[[tuple[Option, ...]], tuple[Option, ...]]) -> Step:
    activations = (replace(a, forms=tuple(replace(f, options=of(f.options)) for f in a.forms)) for a in step.activations)
    return replace(step, activations=tuple(activations))


def lossless_plans(profile: Profile, request: PlanRequest) -> list[Enumerated]:
    """Every plan of every schedule whose options lose nothing."""
    from tests.planner.test_solver import schedules

    names = [p.name for p in profile.parameters]
    return [
        Enumerated(
            schedule, max(footprint(profile, choices, request.optimizer, schedule).values()), lost_share(profile, step, names, choices), 0.0
        )
        for schedule in schedules(profile, request)
        for step in [step_of(profile, schedule)]
        for choices in every_plan(step, names)
        if not any(step.activations[a].forms[f].options[o].lost_energy for (a, f), o in choices.forms.items())
    ]


@given(
    profile=small_profiles(),
    optimizer=st.sampled_from([Optimizer("sgd", 0.9), Optimizer("adam")]),
    share=st.floats(0.3, 0.99),
    fidelity=st.sampled_from([None, 0.9]),
)
@FEW
def test_a_suggestion_that_is_followed_fits(profile: Profile, optimizer: Optimizer, share: float, fidelity: float | None) -> None:
    request = replace(asked(1), optimizer=optimizer, own_loop=True, techniques=("keep",), min_fidelity=fidelity)
    with pytest.raises(InfeasibleBudget) as caught:
        solve(profile, request)
    request = replace(request, budget=Budget(amount_bytes=max(1, int(caught.value.least_budget_bytes * share))))
    with pytest.raises(InfeasibleBudget) as caught:
        solve(profile, request)
    error = caught.value
    tensors = error.binding["tensors"]
    total = sum(int(error.binding[f"{kind}_bytes"]) for kind in ("static", "saved", "transient"))  # type: ignore[call-overload]
    assert sum(tensor["bytes"] for tensor in tensors) == total == error.least_budget_bytes  # type: ignore[attr-defined]
    for suggestion in error.suggestions:
        followed, smaller = request, profile
        for name, value in suggestion["values"].items():  # type: ignore[attr-defined]
            if name == "batch_size":
                smaller = profile.with_batch_of(value)
            else:
                value = Optimizer(**value) if name == "optimizer" else tuple(value) if name in ("techniques", "frozen") else value
                followed = replace(followed, **{name: value})
        budget_bytes = followed.budget.amount_bytes
        less = replace(followed, budget=Budget(amount_bytes=budget_bytes - budget_bytes // ROOM))
        first, plan = solve(smaller, less, search_seconds=0.0), solve(smaller, followed)
        assert first.fidelity == pytest.approx(suggestion["fidelity"], abs=0.1)
        assert plan.fidelity >= float(suggestion["fidelity"]) - 2e-3  # type: ignore[arg-type]
        least = solve(smaller, replace(followed, budget=Budget(amount_bytes=int(suggestion["least_budget_bytes"]))))  # type: ignore[call-overload]
        assert least.predicted_peak_bytes == suggestion["least_budget_bytes"]
