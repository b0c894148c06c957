"""The choice: profile + budget -> plan, by a mixed-integer linear program.

Minimise the share of gradient energy lost, plus a small price for time, subject to footprint ≤ budget at every moment.
Variables are those of `planner.timeline`; what a parameter loses is a further one, at least its whole energy while it is
frozen, and at least what the forms its gradient is worked out from lose of it.
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array, hstack

from planner.errors import InfeasibleBudget, NothingTrainable
from planner.plan import KEEP, NOT_NEEDED, ActivationChoice, Correction, Footprint, ParameterChoice, Plan
from planner.profile import Profile
from planner.request import Optimizer, PlanRequest
from planner.timeline import Choices, Timeline, exact_choices, gradient_flow, timeline

TIME_PRICE = 1e-6  # of the energy, for one plain step of extra time: breaks ties, never buys fidelity worth measuring
GAP = 1e-3  # relative, of the energy lost
TIME_LIMIT_SECONDS = 20.0
PARTS = 1000  # rows count in parts of the budget, so that HiGHS's tolerance of 1e-6 is far below a byte
RETRIES = 3  # of a solution that is a few bytes over, for all that

Values = NDArray[np.float64]


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
    program = _Program(timeline(profile, request.optimizer, corrections), request, trainable)
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


@dataclass
class _Program:
    """The rows of the integer program. Variables: those of the timeline, then the loss of each trainable parameter."""

    timeline: Timeline
    request: PlanRequest
    trainable: tuple[str, ...]

    def __post_init__(self) -> None:
        self.profile = self.timeline.profile
        energies = {p.name: p.gradient_energy for p in self.profile.parameters if p.name in set(self.trainable)}
        total = sum(energies.values())
        self.share = {name: energy / total for name, energy in energies.items()}
        self.base = self.timeline.gains.shape[2]
        self.loss_at = {name: self.base + n for n, name in enumerate(self.trainable)}
        self.columns = self.base + len(self.trainable)
        self._rows: list[tuple[dict[int, float], float]] = []  # Σ coefficient · variable ≥ bound
        self._flow()
        self._cover()
        self._lose()
        self._rows.append(({self.timeline.parameter_at[name]: 1.0 for name in self.trainable}, 1.0))  # a plan trains something
        self.rows = _sparse(self._rows, self.columns)
        self.rows_least = np.array([least for _, least in self._rows])
        self.bytes = np.pad(self.timeline.gains.sum(0), ((0, 0), (0, len(self.trainable)))).astype(np.float64)
        self.constant = self.timeline.constant.sum(0)
        self.upper = self._upper()
        self.integral = np.zeros(self.columns, dtype=np.int64)
        self.integral[: self.timeline.gradients_at] = 1
        self.integral[self.timeline.options_at : self.base] = 1

    def _flow(self) -> None:
        """A gradient passes an operation that reads a trained parameter, or an output that a gradient passes."""
        at = self.timeline.gradients_at
        for i, operation in enumerate(self.profile.operations):
            for source in operation.inputs:
                self._rows.append(({at + i: 1.0, at + source: -1.0}, 0.0))
            for name in operation.parameters:
                self._rows.append(({at + i: 1.0, self.timeline.parameter_at[name]: -1.0}, 0.0))

    def _cover(self) -> None:
        """What a holder needs is kept whole, or in an option of a form that serves it."""
        options: dict[tuple[int, int], list[int]] = {}
        for column, (a, f, _) in enumerate(self.timeline.options, start=self.timeline.options_at):
            options.setdefault((a, f), []).append(column)
        for a, activation in enumerate(self.profile.activations):
            for h, holder in enumerate(activation.holders):
                need = (
                    self.timeline.parameter_at[holder.parameter]
                    if holder.needed_for == "weight" and holder.parameter is not None
                    else self.timeline.gradients_at + holder.operation
                )
                row = {self.timeline.wholes_at + a: 1.0, need: -1.0}
                for f, form in enumerate(activation.forms):
                    if h in form.holders:
                        row |= dict.fromkeys(options.get((a, f), ()), 1.0)
                self._rows.append((row, 0.0))

    def _lose(self) -> None:
        """A frozen parameter loses its share; a trained one what its forms lose."""
        lost: dict[str, dict[int, float]] = {name: {} for name in self.trainable}
        for column, (a, f, o) in enumerate(self.timeline.options, start=self.timeline.options_at):
            for name, energy in self.profile.activations[a].forms[f].options[o].lost_energy.items():
                if name in lost:
                    whole = self._energy(name)
                    lost[name][column] = self.share[name] * min(1.0, energy / whole)
        for name, column in self.loss_at.items():
            self._rows.append(({column: 1.0, self.timeline.parameter_at[name]: self.share[name]}, self.share[name]))
            if lost[name]:
                self._rows.append(({column: 1.0, **{at: -share for at, share in lost[name].items()}}, 0.0))

    def _energy(self, name: str) -> float:
        return self.profile.parameters[self.timeline.parameter_at[name]].gradient_energy

    def _upper(self) -> Values:
        upper = np.ones(self.columns)
        for parameter, column in self.timeline.parameter_at.items():
            upper[column] = parameter in self.loss_at
        for column, (a, f, o) in enumerate(self.timeline.options, start=self.timeline.options_at):
            upper[column] = self.request.may_use(self.profile.activations[a].forms[f].options[o].technique)
        return upper

    def least_loss(self, budget_bytes: int) -> tuple[Choices, float] | None:
        """The best choices within the budget, and the proven least loss of any; None where nothing fits.

        Exact first: where everything can train without loss, a lossy form is not looked at, however little it loses.
        """
        everything = exact_choices(self.profile, frozenset(self.trainable))
        if self.peak_bytes(everything) <= budget_bytes:
            return everything, 0.0
        exact = self._solve(budget_bytes, np.where(self._lossless(), self.upper, 0.0), self._all_trained())
        return exact or self._solve(budget_bytes, self.upper, np.zeros(self.columns))

    def peak_bytes(self, choices: Choices) -> int:
        """The highest predicted footprint, in whole bytes."""
        return max(footprint.total_bytes for footprint in self.timeline.predict(choices))

    def _lossless(self) -> NDArray[np.bool_]:
        lossless = np.ones(self.columns, dtype=np.bool_)
        for column, (a, f, o) in enumerate(self.timeline.options, start=self.timeline.options_at):
            lossless[column] = not self.profile.activations[a].forms[f].options[o].lost_energy
        return lossless

    def _all_trained(self) -> Values:
        lower = np.zeros(self.columns)
        lower[[self.timeline.parameter_at[name] for name in self.trainable]] = 1.0
        return lower

    def _solve(self, budget_bytes: int, upper: Values, lower: Values) -> tuple[Choices, float] | None:
        costs = np.zeros(self.columns)
        costs[self.base :] = 1.0
        for column, (a, f, o) in enumerate(self.timeline.options, start=self.timeline.options_at):
            costs[column] = TIME_PRICE * (
                1e-3 + self.profile.activations[a].forms[f].options[o].seconds / max(self.profile.plain_seconds, 1e-6)
            )
        room = budget_bytes - self.constant
        if (room < 0).any():
            return None
        unit = budget_bytes / PARTS
        tight = np.maximum(self.bytes, 0) @ upper > room  # no choice overfills the other moments
        for _ in range(RETRIES):
            result = milp(
                costs,
                integrality=self.integral,
                bounds=Bounds(lower, upper),
                constraints=[
                    LinearConstraint(self.rows, self.rows_least, np.inf),
                    LinearConstraint(csr_array(self.bytes[tight] / unit), -np.inf, room[tight] / unit),
                ],
                options={"mip_rel_gap": GAP, "time_limit": TIME_LIMIT_SECONDS},
            )
            if result.x is None:
                return None
            choices = self.choices(result.x)
            over = self.peak_bytes(choices) - budget_bytes
            if over <= 0:
                return choices, max(0.0, min(1.0, float(result.mip_dual_bound or 0.0)))
            room = room - over
        return None

    def least_peak(self) -> Choices:
        """The choices with the lowest peak: one more variable, which no moment exceeds."""
        width = self.columns + 1
        unit = max(1.0, float(self.constant.max())) / PARTS
        costs = np.zeros(width)
        costs[-1] = 1.0
        costs[self.base : self.columns] = 1e-6  # of all the smallest plans, one that loses little
        rows = np.hstack([self.bytes / unit, np.full((self.bytes.shape[0], 1), -1.0)])
        beside = csr_array((self.rows.shape[0], 1))
        result = milp(
            costs,
            integrality=np.append(self.integral, 0),
            bounds=Bounds(np.zeros(width), np.append(self.upper, np.inf)),
            constraints=[
                LinearConstraint(hstack([self.rows, beside], format="csr"), self.rows_least, np.inf),
                LinearConstraint(csr_array(rows), -np.inf, -self.constant / unit),
            ],
            options={"mip_rel_gap": 1e-9, "time_limit": TIME_LIMIT_SECONDS},
        )
        assert result.x is not None, "training one parameter with everything kept whole satisfies every row"
        return self.choices(result.x)

    def choices(self, values: Values) -> Choices:
        """Whole choices of a solution, without what no trained parameter needs."""
        trained = frozenset(name for name in self.trainable if values[self.timeline.parameter_at[name]] > 0.5)
        needed = exact_choices(self.profile, trained).whole
        chosen = {
            (a, f): o for column, (a, f, o) in enumerate(self.timeline.options, start=self.timeline.options_at) if values[column] > 0.5
        }
        passes = gradient_flow(self.profile, trained)
        whole: set[int] = set()
        forms: dict[tuple[int, int], int] = {}
        for a in needed:
            activation = self.profile.activations[a]
            uses = [h.parameter in trained if h.needed_for == "weight" else passes[h.operation] for h in activation.holders]
            held = {
                f: o
                for f in range(len(activation.forms))
                if (o := chosen.get((a, f))) is not None and any(uses[h] for h in activation.forms[f].holders)
            }
            served = {h for f in held for h in activation.forms[f].holders}
            if any(use and h not in served for h, use in enumerate(uses)):
                whole.add(a)  # and then the forms would only add to it
            else:
                forms |= {(a, f): o for f, o in held.items()}
        return Choices(trained, frozenset(whole), forms)

    def lost(self, choices: Choices) -> dict[str, float]:
        """Share of all energy that each trainable parameter loses."""
        lost = {name: 0.0 if name in choices.trained else share for name, share in self.share.items()}
        for (a, f), o in choices.forms.items():
            for name, energy in self.profile.activations[a].forms[f].options[o].lost_energy.items():
                if name in choices.trained:
                    lost[name] += self.share[name] * energy / self._energy(name)
        return lost


def _sparse(rows: list[tuple[dict[int, float], float]], columns: int) -> csr_array:
    entries = [(row, column, value) for row, (terms, _) in enumerate(rows) for column, value in terms.items()]
    row, column, value = zip(*entries, strict=True)
    return csr_array(coo_array((value, (row, column)), shape=(len(rows), columns)))


def _plan(program: _Program, choices: Choices, budget_bytes: int, bound: float, seconds: float) -> Plan:
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


def _activation_choices(program: _Program, choices: Choices) -> tuple[ActivationChoice, ...]:
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


def _infeasible(program: _Program, budget_bytes: int) -> InfeasibleBudget:
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


def _live_tensors(program: _Program, peak: Footprint) -> list[dict[str, object]]:
    """The largest tensors that forward itself needs at the moment that binds."""
    names = [operation.name for operation in program.profile.operations]
    if peak.moment.phase not in ("forward", "compress"):
        return []
    at = names.index(peak.moment.operation)
    live = [(size, names[born]) for size, born, last in program.profile.storages if born <= at <= last]
    workspace = program.profile.operations[at].forward_bytes
    rows = sorted([*live, (workspace, f"workspace of {names[at]}")], reverse=True)
    return [{"name": name, "bytes": size} for size, name in rows[:8] if size > 0]


def _suggestions(program: _Program, budget_bytes: int) -> tuple[dict[str, object], ...]:
    """Cheap changes, each tried by the solver, that would fit."""
    suggestions: list[dict[str, object]] = []
    if program.request.optimizer.states:
        plain = _Program(timeline(program.profile, Optimizer()), program.request, program.trainable)
        solution = plain.least_loss(budget_bytes)
        if solution is not None:
            fidelity = 1.0 - sum(plain.lost(solution[0]).values())
            suggestions.append({"change": "optimizer", "value": "sgd without momentum", "budget_bytes": budget_bytes, "fidelity": fidelity})
    return tuple(suggestions)
