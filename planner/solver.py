"""The choice: profile + budget -> plan.

The plan loses the least share of gradient energy, at a small price for time, with the footprint inside the budget at every moment.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter

from planner.errors import InfeasibleBudget, NothingTrainable
from planner.footprint import timeline
from planner.integer_program import LOSS_GAP, TIME_LIMIT_SECONDS, IntegerProgram
from planner.plan import (
    EARLY_UPDATE,
    KEEP,
    MICRO_BATCH,
    NOT_NEEDED,
    SLICES,
    ActivationChoice,
    Correction,
    Footprint,
    ParameterChoice,
    Plan,
    Schedule,
)
from planner.profile import Profile, Step
from planner.request import Optimizer, PlanRequest
from planner.timeline import Choices, exact_choices

SEARCH_SECONDS = 4.0  # after which no further schedule is searched for less loss
SMALLEST = 6  # schedules that divide the model, of the lowest peaks
UNHURRIED = 1.15  # plain steps of time: an exact plan that takes no more needs no divided model
NOTICEABLE = 0.03  # share of the step's time: less than that is no reason to leave an earlier schedule


@dataclass(frozen=True, slots=True)
class Solution:
    """The best choices for a request, of the best schedule for them. `least_loss`: no choices of any schedule lose less, as proved."""

    program: IntegerProgram
    choices: Choices
    least_loss: float

    @property
    def loss(self) -> float:
        """Share of the trainable parameters' energy that is lost."""
        return sum(self.program.lost(self.choices).values())

    @property
    def seconds(self) -> float:
        return self.program.seconds_of(self.choices)


def solve(profile: Profile, request: PlanRequest, corrections: tuple[Correction, ...] = ()) -> Plan:
    """The plan that loses least gradient energy within the budget.

    Args:
        corrections: what measured steps took beyond earlier predictions.

    Raises:
        NothingTrainable: no parameter with a gradient matches `request.trainable`.
        InfeasibleBudget: not even the smallest plan fits.
    """
    started = perf_counter()
    trainable = tuple(p.name for p in profile.parameters if request.may_train(p.name) and p.gradient_energy > 0)
    if not trainable:
        raise NothingTrainable(request.trainable, tuple(p.name for p in profile.parameters))
    runtime_bytes = profile.runtime_bytes if request.budget_scope == "process" else 0
    budget_bytes = request.budget.in_bytes(plain_peak_bytes(profile, request.optimizer) + runtime_bytes) - runtime_bytes
    programs = Programs(profile, request, trainable, corrections)
    solution = best(programs, budget_bytes)
    if solution is None:
        raise _infeasible(programs, budget_bytes, runtime_bytes)
    return _plan(solution, budget_bytes, runtime_bytes, perf_counter() - started)


@dataclass
class Programs:
    """Integer programs of the schedules that a request allows, each made when it is first looked at."""

    profile: Profile
    request: PlanRequest
    trainable: tuple[str, ...]
    corrections: tuple[Correction, ...] = ()

    @cached_property
    def undivided(self) -> list[IntegerProgram]:
        return [self._program(schedule) for schedule in undivided(self.profile, self.request)]

    @cached_property
    def divided(self) -> list[IntegerProgram]:
        return [self._program(schedule) for schedule in divided(self.profile, self.request)]

    def _program(self, schedule: Schedule) -> IntegerProgram:
        made = timeline(self.profile, self.request.optimizer, schedule, self.corrections)
        return IntegerProgram(made, self.request, self.trainable)


def undivided(profile: Profile, request: PlanRequest) -> list[Schedule]:
    """The schedules a request allows that run the whole model at once, the plainest first."""
    whole = profile.whole.batch_size
    allowed = [Schedule(whole)]
    if request.own_loop:
        return allowed
    if request.may_use(EARLY_UPDATE):
        allowed.append(Schedule(whole, early_updates=True))
    if request.may_use(MICRO_BATCH):
        allowed += [Schedule(step.batch_size) for step in profile.steps[1:]]
    return allowed


def divided(profile: Profile, request: PlanRequest) -> list[Schedule]:
    """The schedules a request allows that divide the model: the `SMALLEST`, and those that no other beats in peak and time, while
    all trains and is kept whole.
    """
    if request.own_loop or not request.may_use(SLICES):
        return []
    trainable = frozenset(p.name for p in profile.parameters if request.may_train(p.name))
    bare = replace(profile, steps=tuple(_without_options(step) for step in profile.steps))
    costs = []
    for step in profile.steps[1:]:
        for split in profile.splits:
            schedule = Schedule(profile.whole.batch_size, request.may_use(EARLY_UPDATE), split, step.batch_size)
            made = timeline(bare, request.optimizer, schedule)
            everything = exact_choices(made.step, trainable)
            costs.append((made.peak_bytes(everything), made.seconds(everything), schedule))
    kept, fastest = [], float("inf")
    for rank, (_, seconds, schedule) in enumerate(sorted(costs, key=lambda cost: cost[:2])):
        if rank < SMALLEST or seconds < (1 - NOTICEABLE) * fastest:
            kept.append(schedule)
            fastest = min(fastest, seconds)
    return kept


def _without_options(step: Step) -> Step:
    return replace(step, activations=tuple(replace(activation, forms=()) for activation in step.activations))


def best(programs: Programs, budget_bytes: int) -> Solution | None:
    """The best solution of the same request for several schedules; None where nothing fits.

    Exact first: where everything can train without loss, a lossy form is not looked at, however little it loses.
    """
    exact = _fastest_exact(programs.undivided, budget_bytes, None)
    if exact is None or exact.seconds > UNHURRIED * programs.undivided[0].seconds_of_everything:
        exact = _fastest_exact(programs.divided, budget_bytes, exact)
    return exact or _least_loss([*programs.undivided, *programs.divided], budget_bytes)


def _fastest_exact(programs: list[IntegerProgram], budget_bytes: int, fastest: Solution | None) -> Solution | None:
    """What fits as it is comes first, then the others from fast to slow, while they could still be faster."""
    fitting = [program.timeline.peak_bytes(program.everything) <= budget_bytes for program in programs]
    order = sorted(range(len(programs)), key=lambda n: (not fitting[n], 0.0 if fitting[n] else programs[n].seconds_of_everything))
    for program in (programs[n] for n in order):
        least = (1 - NOTICEABLE) * fastest.seconds if fastest is not None else float("inf")
        if program.seconds_of_everything < least:
            choices = program.exact(budget_bytes)
            if choices is not None and program.seconds_of(choices) < least:
                fastest = Solution(program, choices, 0.0)
    return fastest


def _least_loss(programs: list[IntegerProgram], budget_bytes: int) -> Solution | None:
    """The most promising schedule first; of the others only what is better. After `SEARCH_SECONDS` their quick bounds must do."""
    started = perf_counter()
    bounds = [program.least_loss_bound(budget_bytes) for program in programs]
    found: list[Solution] = []
    proved: list[float] = []  # of each schedule, a loss that none of its choices gets below
    for bound, program in sorted(zip(bounds, programs, strict=True), key=lambda pair: pair[0]):
        least = min((solution.loss for solution in found), default=float("inf"))
        left = SEARCH_SECONDS - (perf_counter() - started)
        if bound >= least - LOSS_GAP or (found and left <= 0):
            proved.append(bound)
            continue
        solved = program.least_loss(budget_bytes, least - LOSS_GAP, max(left, 1.0) if found else TIME_LIMIT_SECONDS)
        if solved is not None:
            found.append(Solution(program, solved[0], 0.0))
        proved.append(max(bound, solved[1] if solved is not None else least - LOSS_GAP))
    if not found:
        return None
    return replace(min(found, key=lambda solution: solution.loss), least_loss=min(proved))


def plain_peak_bytes(profile: Profile, optimizer: Optimizer) -> int:
    """Peak of the plain step with this optimizer: measured without state, which it holds at every moment."""
    parameters = sum(parameter.bytes for parameter in profile.parameters)
    update = profile.static_bytes + parameters  # all gradients, at the end
    if optimizer.states == 2:
        update += 2 * max((parameter.bytes for parameter in profile.parameters), default=0)
    return max(profile.plain_peak_bytes, update) + optimizer.states * parameters


def _plan(solution: Solution, budget_bytes: int, runtime_bytes: int, seconds: float) -> Plan:
    program, choices = solution.program, solution.choices
    profile, request = program.profile, program.request
    footprints = program.timeline.predict(choices)
    peak = max(footprints, key=lambda footprint: footprint.total_bytes)
    fidelity = 1.0 - solution.loss
    bound = max(1.0 - solution.least_loss, fidelity)
    return Plan(
        budget_bytes=budget_bytes + runtime_bytes,
        fidelity=fidelity,
        bound=bound,
        gap=bound - fidelity,
        predicted_peak_bytes=peak.total_bytes,
        predicted_seconds=program.seconds_of(choices),
        peak=peak,
        schedule=program.timeline.schedule,
        optimizer=request.optimizer,
        own_loop=request.own_loop,
        parameters=tuple(
            ParameterChoice(p.name, request.may_train(p.name), p.name in choices.trained, p.bytes, p.gradient_energy)
            for p in profile.parameters
        ),
        activations=_activation_choices(program, choices),
        timeline=footprints,
        solve_seconds=seconds,
        variables=program.columns,
        budget_scope=request.budget_scope,
        runtime_bytes=runtime_bytes,
    )


def _activation_choices(program: IntegerProgram, choices: Choices) -> tuple[ActivationChoice, ...]:
    operations = program.step.operations
    rows = []
    for a, activation in enumerate(program.step.activations):
        names = tuple(operations[h.operation].name for h in activation.holders)
        held = [(f, choices.forms[a, f]) for f in range(len(activation.forms)) if (a, f) in choices.forms]
        if not held:
            whole = a in choices.whole
            rows.append(
                ActivationChoice(
                    activation.name,
                    activation.name,
                    names,
                    activation.shape,
                    activation.bytes,
                    KEEP if whole else NOT_NEEDED,
                    {},
                    activation.bytes * whole,
                    0.0,
                )
            )
        for f, o in held:
            form = activation.forms[f]
            option = form.options[o]
            lost = sum(energy for name, energy in option.lost_energy.items() if name in choices.trained)
            served = tuple(names[h] for h in form.holders)
            rows.append(
                ActivationChoice(
                    activation.name,
                    form.value,
                    served,
                    activation.shape,
                    activation.bytes,
                    option.technique,
                    dict(option.settings),
                    option.held_bytes,
                    lost,
                )
            )
    return tuple(rows)


def _infeasible(programs: Programs, budget_bytes: int, runtime_bytes: int) -> InfeasibleBudget:
    program, choices = _least_peak([*programs.undivided, *programs.divided])
    peak: Footprint = max(program.timeline.predict(choices), key=lambda footprint: footprint.total_bytes)
    binding = {
        "phase": peak.moment.phase,
        "operation": peak.moment.operation,
        "static_bytes": peak.static_bytes,
        "saved_bytes": peak.saved_bytes,
        "transient_bytes": peak.transient_bytes,
        "tensors": _live_tensors(program, peak),
    }
    if runtime_bytes:
        binding["runtime_bytes"] = runtime_bytes
    least_bytes = peak.total_bytes + runtime_bytes
    return InfeasibleBudget(budget_bytes + runtime_bytes, least_bytes, binding, _suggestions(programs, budget_bytes))


def _least_peak(programs: list[IntegerProgram]) -> tuple[IntegerProgram, Choices]:
    """The schedule and choices with the lowest peak of all."""
    bounds = [program.least_peak(whole=False)[1] for program in programs]
    found: list[tuple[float, IntegerProgram, Choices]] = []
    for bound, program in sorted(zip(bounds, programs, strict=True), key=lambda pair: pair[0]):
        if found and bound >= min(peak for peak, _, _ in found):
            continue
        choices, peak = program.least_peak()
        found.append((peak, program, choices))
    _, program, choices = min(found, key=lambda each: each[0])
    return program, choices


def _live_tensors(program: IntegerProgram, peak: Footprint) -> list[dict[str, object]]:
    """The largest tensors that forward itself needs at the moment that binds."""
    names = [operation.name for operation in program.step.operations]
    if peak.moment.phase not in ("forward", "compress"):
        return []
    at = names.index(peak.moment.operation)
    live = [(size, names[born]) for size, born, last in program.step.storages if born <= at <= last]
    workspace = program.step.operations[at].forward_bytes
    rows = sorted([*live, (workspace, f"workspace of {names[at]}")], reverse=True)
    return [{"name": name, "bytes": size} for size, name in rows[:8] if size > 0]


def _suggestions(programs: Programs, budget_bytes: int) -> tuple[dict[str, object], ...]:
    """Cheap changes, each tried by the solver, that would fit."""
    suggestions: list[dict[str, object]] = []
    if programs.request.optimizer.states:
        solution = best(replace(programs, request=replace(programs.request, optimizer=Optimizer())), budget_bytes)
        if solution is not None:
            change = {"change": "optimizer", "value": "sgd without momentum", "budget_bytes": budget_bytes, "fidelity": 1.0 - solution.loss}
            suggestions.append(change)
    return tuple(suggestions)
