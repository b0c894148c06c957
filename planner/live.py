"""What is live at one moment of a planned step, by name."""

from planner.plan import Footprint
from planner.timeline import ALWAYS, KINDS, Choices, Timeline

LARGEST = 8  # tensors that are named; the rest is summed up


def live_tensors(timeline: Timeline, choices: Choices, at: Footprint) -> list[dict[str, object]]:
    """The largest first: name, kind, bytes, and share of the footprint."""
    row, sizes = timeline.row[at.moment], dict[tuple[str, str], int]()
    values = [*timeline.variables(choices), 1]
    for kind, first, after, column, size in timeline.runs:
        if first <= row < after and values[column]:
            name = KINDS[kind], _name(timeline, column, KINDS[kind], at)
            sizes[name] = sizes.get(name, 0) + size
    _forward_by_name(timeline, sizes, at)
    rows = sorted(((size, kind, name) for (kind, name), size in sizes.items() if size > 0), reverse=True)
    named = [{"name": name, "kind": kind, "bytes": size, "share": size / at.total_bytes} for size, kind, name in rows[:LARGEST]]
    rest = sum(size for size, _, _ in rows[LARGEST:])
    return named + [{"name": f"{len(rows) - LARGEST} more", "kind": "", "bytes": rest, "share": rest / at.total_bytes}] * (rest > 0)


def _name(timeline: Timeline, column: int, kind: str, at: Footprint) -> str:
    columns, step = timeline.columns, timeline.step
    if column == ALWAYS:
        return "parameters, buffers and batch" if kind == "static" else f"forward of {at.moment.operation}"
    if column < columns.gradients:
        return f"gradient and optimizer state of {timeline.profile.parameters[column].name}"
    if column < columns.wholes:
        held = "held by" if kind == "saved" else f"{at.moment.phase} of"
        return f"{held} {step.operations[column - columns.gradients].name}"
    if column < columns.options:
        return step.activations[column - columns.wholes].name
    a, f, o = columns.chosen[column - columns.options]
    form = step.activations[a].forms[f]
    return f"{step.activations[a].name} ({form.options[o].technique})"


def _forward_by_name(timeline: Timeline, sizes: dict[tuple[str, str], int], at: Footprint) -> None:
    """Take apart what the forward of the whole batch has live at this moment."""
    together = ("transient", f"forward of {at.moment.operation}")
    if at.moment.phase != "forward" or together not in sizes:
        return
    names = [operation.name for operation in timeline.step.operations]
    now = names.index(at.moment.operation)
    over = timeline.step.operations[now].over
    for size, born, last_use in timeline.step.storages:
        if born <= now <= last_use and (over is None or born != over.producer):
            name = ("transient", f"output of {names[born]}")
            sizes[name] = sizes.get(name, 0) + size
            sizes[together] -= size
