"""The choice: profile + budget -> plan.

The plan loses the least share of gradient energy, at a small price for time, with the footprint inside the budget at every moment.
"""

from time import perf_counter

from planner.errors import InfeasibleBudget, NothingTrainable
from planner.integer_program import IntegerProgram
from planner.plan import KEEP, NOT_NEEDED, ActivationChoice, Correction, Footprint, ParameterChoice, Plan
from planner.profile import Profile
from planner.request import Optimizer, PlanRequest
from planner.timeline import Choices, timeline


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
    budget_bytes = request.budget.in_bytes(plain_peak_bytes(profile, request.optimizer))
    program = IntegerProgram(timeline(profile, request.optimizer, corrections), request, trainable)
    solution = program.least_loss(budget_bytes)
    if solution is None:
        raise _infeasible(program, budget_bytes)
    choices, bound_loss = solution
    return _plan(program, choices, budget_bytes, 1.0 - bound_loss, perf_counter() - started)


def plain_peak_bytes(profile: Profile, optimizer: Optimizer) -> int:
    """Peak of the plain step with this optimizer: measured without state, which it holds at every moment."""
    parameters = sum(parameter.bytes for parameter in profile.parameters)
    update = profile.static_bytes + parameters  # all gradients, at the end
    if optimizer.states == 2:
        update += 2 * max((parameter.bytes for parameter in profile.parameters), default=0)
    return max(profile.plain_peak_bytes, update) + optimizer.states * parameters


def _plan(program: IntegerProgram, choices: Choices, budget_bytes: int, bound: float, seconds: float) -> Plan:
    profile, request = program.profile, program.request
    footprints = program.timeline.predict(choices)
    peak = max(footprints, key=lambda footprint: footprint.total_bytes)
    fidelity = 1.0 - sum(program.lost(choices).values())
    bound = max(bound, fidelity)
    return Plan(
        budget_bytes=budget_bytes,
        fidelity=fidelity,
        bound=bound,
        gap=bound - fidelity,
        predicted_peak_bytes=peak.total_bytes,
        peak=peak,
        micro_batch=profile.batch_size,
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
    )


def _activation_choices(program: IntegerProgram, choices: Choices) -> tuple[ActivationChoice, ...]:
    operations = program.profile.operations
    rows = []
    for a, activation in enumerate(program.profile.activations):
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


def _infeasible(program: IntegerProgram, budget_bytes: int) -> InfeasibleBudget:
    choices = program.least_peak()
    peak: Footprint = max(program.timeline.predict(choices), key=lambda footprint: footprint.total_bytes)
    binding = {
        "phase": peak.moment.phase,
        "operation": peak.moment.operation,
        "static_bytes": peak.static_bytes,
        "saved_bytes": peak.saved_bytes,
        "transient_bytes": peak.transient_bytes,
        "tensors": _live_tensors(program, peak),
    }
    return InfeasibleBudget(budget_bytes, peak.total_bytes, binding, _suggestions(program, budget_bytes))


def _live_tensors(program: IntegerProgram, peak: Footprint) -> list[dict[str, object]]:
    """The largest tensors that forward itself needs at the moment that binds."""
    names = [operation.name for operation in program.profile.operations]
    if peak.moment.phase not in ("forward", "compress"):
        return []
    at = names.index(peak.moment.operation)
    live = [(size, names[born]) for size, born, last in program.profile.storages if born <= at <= last]
    workspace = program.profile.operations[at].forward_bytes
    rows = sorted([*live, (workspace, f"workspace of {names[at]}")], reverse=True)
    return [{"name": name, "bytes": size} for size, name in rows[:8] if size > 0]


def _suggestions(program: IntegerProgram, budget_bytes: int) -> tuple[dict[str, object], ...]:
    """Cheap changes, each tried by the solver, that would fit."""
    suggestions: list[dict[str, object]] = []
    if program.request.optimizer.states:
        plain = IntegerProgram(timeline(program.profile, Optimizer()), program.request, program.trainable)
        solution = plain.least_loss(budget_bytes)
        if solution is not None:
            fidelity = 1.0 - sum(plain.lost(solution[0]).values())
            suggestions.append({"change": "optimizer", "value": "sgd without momentum", "budget_bytes": budget_bytes, "fidelity": fidelity})
    return tuple(suggestions)
