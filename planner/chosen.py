"""A plan from the choices that were found for it."""

import numpy as np

from planner.integer_program import IntegerProgram
from planner.plan import KEEP, NOT_NEEDED, ActivationChoice, ParameterChoice, Plan
from planner.profile import Profile
from planner.request import PlanRequest
from planner.search import Solution
from planner.timeline import Choices, Timeline, losses
from planner.trainable import trainable


def plan_of(
    solution: Solution, profile: Profile, request: PlanRequest, budget_bytes: int, headroom_bytes: int, plain_seconds: float, seconds: float
) -> Plan:
    """
    Args:
        seconds: that it took to find.
    """
    program, choices = solution.program, solution.choices
    footprints = program.timeline.predict(choices)
    peak = max(footprints, key=lambda footprint: footprint.total_bytes)
    score = 1.0 - solution.loss
    bound = max(1.0 - solution.least_loss, score)
    allowed = trainable(profile, request)
    return Plan(
        budget_bytes=budget_bytes,
        headroom_bytes=headroom_bytes,
        fidelity=program.fidelity(choices),
        fidelity_range=fidelity_range(program, choices),
        objective=request.objective,
        score=score,
        bound=bound,
        gap=bound - score,
        predicted_peak_bytes=peak.total_bytes,
        predicted_seconds=solution.seconds,
        slowdown=solution.seconds / plain_seconds,
        peak=peak,
        schedule=program.timeline.schedule,
        optimizer=request.optimizer,
        own_loop=request.own_loop,
        parameters=tuple(
            ParameterChoice(p.name, p.name in allowed, p.name in choices.trained, p.bytes, p.gradient_energy) for p in profile.parameters
        ),
        activations=activation_choices(program.timeline, choices),
        timeline=footprints,
        solve_seconds=seconds,
        variables=program.rows.columns,
    )


def fidelity_range(program: IntegerProgram, choices: Choices) -> tuple[float, float]:
    """Lowest and highest fidelity of the sample's batches, by what each was measured to lose."""
    parameters = [p for p in program.timeline.profile.parameters if p.name in program.weight]
    batches = max((len(p.batch_energies) for p in parameters), default=0) or 1
    energy, lost = np.zeros(batches), np.zeros(batches)
    for parameter in parameters:
        of_batches = parameter.gradient_energy * np.array(parameter.batch_energies or (1.0,))
        energy += of_batches
        lost += of_batches * (parameter.name not in choices.trained)
    of_forms = losses(program.timeline.step, choices)
    for (a, f), o in choices.forms.items():
        option = program.timeline.step.activations[a].forms[f].options[o]
        lost += sum(of_forms[a, f].values()) * np.array(option.batch_losses or (1.0,))
    fidelities = 1.0 - lost / energy
    return float(fidelities.min()), float(fidelities.max())


def activation_choices(timeline: Timeline, choices: Choices) -> tuple[ActivationChoice, ...]:
    """How each activation is held."""
    operations, of_forms = timeline.step.operations, losses(timeline.step, choices)
    rows = []
    for a, activation in enumerate(timeline.step.activations):
        names = tuple(operations[h.operation].name for h in activation.holders)
        held = [(f, choices.forms[a, f]) for f in range(len(activation.forms)) if (a, f) in choices.forms]
        if not held:
            whole = a in choices.whole
            rows.append(
                ActivationChoice(
                    activation.name,
                    activation.name,
                    tuple(dict.fromkeys(names)),
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
            lost = sum(of_forms[a, f].values())
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
