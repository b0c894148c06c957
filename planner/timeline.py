"""The footprint at every moment of a step, as a linear function of a plan's choices.

Every storage, form and gradient lives for one interval of the moments, in order: forward from first to last operation, backward
from last to first, update. So each choice adds its bytes to a run of moments, and the same rows predict a plan's footprint
and constrain the solver.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.plan import Correction, Footprint
from planner.profile import Moment, Profile
from planner.request import Optimizer

Bytes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Choices:
    """What a plan decides. Activations, forms and options by index in the profile.

    Attributes:
        trained: names of the parameters.
        whole: activations kept whole.
        forms: option for each (activation, form) that is held in one.
    """

    trained: frozenset[str]
    whole: frozenset[int]
    forms: dict[tuple[int, int], int]


@dataclass(frozen=True)
class Timeline:
    """Rows: the moments in order. Columns: the variables a plan decides, 0 or 1 each.

    Variables in order: each parameter trained; a gradient passing each operation; each activation whole; each option.

    Attributes:
        options: (activation, form, option) of the last group of variables.
        constant, gains: bytes at each moment by themselves and for each variable, for static, saved and transient bytes.
    """

    profile: Profile
    moments: tuple[Moment, ...]
    options: tuple[tuple[int, int, int], ...]
    constant: Bytes  # (3, moments)
    gains: Bytes  # (3, moments, variables)

    @cached_property
    def parameter_at(self) -> dict[str, int]:
        return {parameter.name: at for at, parameter in enumerate(self.profile.parameters)}

    @property
    def gradients_at(self) -> int:
        return len(self.profile.parameters)

    @property
    def wholes_at(self) -> int:
        return self.gradients_at + len(self.profile.operations)

    @property
    def options_at(self) -> int:
        return self.wholes_at + len(self.profile.activations)

    def variables(self, choices: Choices) -> Bytes:
        """The variables' values for a plan's choices."""
        values = np.zeros(self.gains.shape[2], dtype=np.int64)
        for name in choices.trained:
            values[self.parameter_at[name]] = 1
        for at, passes in enumerate(gradient_flow(self.profile, choices.trained)):
            values[self.gradients_at + at] = passes
        for at in choices.whole:
            values[self.wholes_at + at] = 1
        for at, (activation, form, option) in enumerate(self.options):
            values[self.options_at + at] = choices.forms.get((activation, form)) == option
        return values

    def predict(self, choices: Choices) -> tuple[Footprint, ...]:
        """Footprint at every moment."""
        bytes_3M = self.constant + self.gains @ self.variables(choices)
        return tuple(Footprint(moment, *(int(part) for part in bytes_3M[:, at])) for at, moment in enumerate(self.moments))


def gradient_flow(profile: Profile, trained: frozenset[str]) -> list[bool]:
    """For each operation, whether a gradient passes it: it reads a trained parameter, or an output that needs one."""
    passes: list[bool] = []
    for operation in profile.operations:
        passes.append(any(p in trained for p in operation.parameters) or any(passes[i] for i in operation.inputs))
    return passes


def exact_choices(profile: Profile, trained: frozenset[str]) -> Choices:
    """Keep whole whatever the trained parameters need."""
    passes = gradient_flow(profile, trained)
    needed = (
        at
        for at, activation in enumerate(profile.activations)
        if any(h.parameter in trained if h.needed_for == "weight" else passes[h.operation] for h in activation.holders)
    )
    return Choices(trained, frozenset(needed), {})


def timeline(profile: Profile, optimizer: Optimizer, corrections: tuple[Correction, ...] = ()) -> Timeline:
    """The rows for a profile and an optimizer. A correction adds to its moment what a measured step took beyond the prediction."""
    moments, at = _moments(profile)
    static, saved, transient = range(3)
    options = tuple(
        (a, f, o)
        for a, activation in enumerate(profile.activations)
        for f, form in enumerate(activation.forms)
        for o in range(len(form.options))
    )
    parameters, operations = len(profile.parameters), len(profile.operations)
    constant: Bytes = np.zeros((3, len(moments)), dtype=np.int64)
    gains: Bytes = np.zeros((3, len(moments), parameters + operations + len(profile.activations) + len(options)), dtype=np.int64)
    last_reader = {name: i for i, operation in enumerate(profile.operations) for name in operation.parameters}

    constant[static] += profile.static_bytes
    for column, parameter in enumerate(profile.parameters):
        gains[static, :, column] += optimizer.states * parameter.bytes
        if parameter.name in last_reader:  # its gradient: from the first backward that gives a part of it
            gains[static, at["backward", last_reader[parameter.name]] :, column] += parameter.bytes
    for size, born, last_use in profile.storages:
        constant[transient, at["forward", born] : at["forward", last_use] + 1] += size
    for i, operation in enumerate(profile.operations):
        constant[transient, at["forward", i]] += operation.forward_bytes
        gains[transient, at["backward", i], parameters + i] += operation.backward_bytes
        gains[saved, at["forward", i] + 1 : at["backward", i] + 1, parameters + i] += operation.internal_bytes
    for column, activation in enumerate(profile.activations, start=parameters + operations):
        release = min(holder.operation for holder in activation.holders)
        gains[saved, at["forward", activation.last_use] + 1 : at["backward", release] + 1, column] += activation.bytes
    for column, (a, f, o) in enumerate(options, start=parameters + operations + len(profile.activations)):
        form = profile.activations[a].forms[f]
        option = form.options[o]
        holders = [profile.activations[a].holders[h].operation for h in form.holders]
        made = at["compress", min(holders)]
        gains[static, :, column] += option.shipped_bytes
        gains[saved, made : at["backward", min(holders)] + 1, column] += option.held_bytes
        gains[transient, made, column] += option.compress_bytes
        for holder in holders:
            gains[transient, at["backward", holder], column] += option.restore_bytes
    if optimizer.states == 2:  # Adam works out one parameter's step in two temporaries
        constant[transient, -1] += 2 * max((parameter.bytes for parameter in profile.parameters), default=0)
    row = {moment: number for number, moment in enumerate(moments)}
    for correction in corrections:
        constant[transient, row[correction.moment]] += correction.extra_bytes
    return Timeline(profile, moments, options, constant, gains)


def _moments(profile: Profile) -> tuple[tuple[Moment, ...], dict[tuple[str, int], int]]:
    """The moments in order, and the row of each phase of each operation."""
    first_holders = {
        min(activation.holders[h].operation for h in form.holders) for activation in profile.activations for form in activation.forms
    }
    moments: list[Moment] = []
    at: dict[tuple[str, int], int] = {}
    for i, operation in enumerate(profile.operations):
        if i in first_holders:
            at["compress", i] = len(moments)
            moments.append(Moment("compress", operation.name))
        at["forward", i] = len(moments)
        moments.append(Moment("forward", operation.name))
    for i in reversed(range(len(profile.operations))):
        at["backward", i] = len(moments)
        moments.append(Moment("backward", profile.operations[i].name))
    moments.append(Moment("update", "optimizer"))
    return tuple(moments), at
