"""Whole choices of a solution of the integer program."""

from planner.highs import Values
from planner.plan import RECOMPUTE
from planner.rows import ProgramRows
from planner.timeline import Choices, exact_choices, gradient_flow

Chosen = dict[tuple[int, int], int]  # the option of each (activation, form)


def whole_choices(rows: ProgramRows, values: Values) -> Choices:
    """Whole choices of a solution, without what no trained parameter needs."""
    step, at = rows.step, rows.at
    trained = frozenset(name for name in rows.weight if values[at.parameter[name]] > 0.5)
    needed = exact_choices(step, trained).whole
    chosen = {(a, f): o for column, (a, f, o) in enumerate(at.chosen, start=at.options) if values[column] > 0.5}
    chosen = _left_over(rows, chosen) | chosen
    passes = gradient_flow(step, trained)
    whole: set[int] = set()
    forms: dict[tuple[int, int], int] = {}
    for a in sorted(needed, reverse=True):  # what is worked out comes after its sources
        activation = step.activations[a]
        uses = [h.parameter in trained if h.needed_for == "weight" else passes[h.operation] for h in activation.holders]
        held = {
            f: o
            for f in range(len(activation.forms))
            if (o := chosen.get((a, f))) is not None and any(uses[h] for h in activation.forms[f].holders)
        }
        for f in sorted(held, key=lambda f: -activation.forms[f].options[held[f]].held_bytes):  # what others serve too
            others = {h for other in held if other != f for h in activation.forms[other].holders}
            if all(h in others for h in activation.forms[f].holders if uses[h]):
                del held[f]
        served = {h for f in held for h in activation.forms[f].holders}
        if a in whole or any(use and h not in served for h, use in enumerate(uses)):
            whole.add(a)  # and then the forms would only add to it
        else:
            forms |= {(a, f): o for f, o in held.items()}
            whole |= {source for f, o in held.items() for source in activation.forms[f].options[o].sources}
    return Choices(trained, frozenset(whole), forms)


def _left_over(rows: ProgramRows, chosen: Chosen) -> Chosen:
    """What operations keep of their own and do without, since they work themselves out again for some form of an input."""
    of = rows.step.activations
    again = {of[a].holders[h].operation for a, f in chosen for h in of[a].forms[f].holders if of[a].holders[h].needed_for == "gradient"}
    return {
        (a, f): o
        for column, (a, f, o) in enumerate(rows.at.chosen, start=rows.at.options)
        if rows.options[column].technique == RECOMPUTE
        and not rows.options[column].settings
        and of[a].holders[of[a].forms[f].holders[0]].operation in again
    }
