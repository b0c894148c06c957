"""Plans and models as tables for people."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.plan import ActivationChoice, Alternative, Certificate, Plan
from service.frontiers import FrontierAnswer
from service.presets import Preset
from service.summary import ModelSummary

WAYS = {
    "lossless": "nothing lost",
    "smaller_batch": "a smaller batch",
    "last_layers": "last layers only",
    "one_epsilon": "last layers, HOSVD at one ε",
}
UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def amount(size: int) -> str:
    """Bytes in the unit that leaves three digits or so: 1.23 MiB, 45.6 MiB, 789 MiB. Exact below 1 KiB."""
    for unit, factor in UNITS:
        if abs(size) >= factor:
            number = size / factor
            return f"{number:.{2 if abs(number) < 10 else 1 if abs(number) < 100 else 0}f} {unit}"
    return f"{size} B"


def plan_table(plan: Plan, certificate: Certificate, wide: bool) -> RenderableType:
    """What is held how, what trains, and what a step takes beside the budget. `wide`: with what needs more than 80 columns."""
    return Group(
        _activations(plan, wide),
        Text(),
        _parameters(plan),
        Text(f"The batch goes {plan.schedule}"),
        Text(),
        _peak(plan),
        Text(),
        _alternatives(plan),
        Text(),
        _steps(plan, certificate),
    )


def _activations(plan: Plan, wide: bool) -> Table:
    table = Table(title="Activations held for the backward pass", title_justify="left", caption_justify="left")
    for name in ("activation", *("held by", "shape")[: 2 * wide], "technique", "settings"):
        table.add_column(name, overflow="fold")
    for name in ("whole", "held", "lost energy"):
        table.add_column(name, justify="right", no_wrap=True)
    for choice in plan.activations:
        table.add_row(
            choice.name,
            *(_some(choice.holders), "×".join(map(str, choice.shape)))[: 2 * wide],
            choice.technique,
            _settings(choice),
            amount(choice.bytes),
            amount(choice.held_bytes),
            f"{choice.lost_energy:.2g}" if choice.lost_energy else "0",
        )
    whole, held = sum(choice.bytes for choice in plan.activations), sum(choice.held_bytes for choice in plan.activations)
    table.caption = f"{amount(whole)} whole, {amount(held)} held"
    return table


def _parameters(plan: Plan) -> Text:
    trained = [parameter for parameter in plan.parameters if parameter.trained]
    frozen = [parameter.name for parameter in plan.parameters if not parameter.trained]
    line = f"{len(trained)} of {len(plan.parameters)} parameters train ({amount(sum(parameter.bytes for parameter in trained))})"
    return Text(line + (f"; frozen: {_some(tuple(frozen))}" if frozen else ""))


def _peak(plan: Plan) -> Table:
    table = Table(title=f"Footprint at the predicted peak: {plan.peak.moment.phase} of {plan.peak.moment.operation}", title_justify="left")
    for name in ("static", "saved", "transient", "together", "budget"):
        table.add_column(name, justify="right")
    peak = plan.peak
    together = (peak.static_bytes, peak.saved_bytes, peak.transient_bytes, peak.total_bytes, plan.budget_bytes)
    table.add_row(*map(amount, together))
    return table


def _steps(plan: Plan, certificate: Certificate) -> Table:
    table = Table(title="One training step, measured", title_justify="left")
    for name in ("", "peak", "of the budget", "process peak", "fidelity", "seconds"):
        table.add_column(name, justify="left" if not name else "right")
    plain = certificate.plain
    table.add_row(
        "plain", *_measured(plain.measured_peak_bytes, plan.budget_bytes, plain.process_peak_bytes), "1", f"{plain.step_seconds:.3f}"
    )
    row = _measured(certificate.measured_peak_bytes, plan.budget_bytes, certificate.process_peak_bytes)
    fidelity = f"{certificate.fidelity:.6f}{_range(certificate.fidelity_range)}"
    table.add_row("planned", *row, fidelity, f"{certificate.step_seconds:.3f}", style="bold")
    return table


def _range(fidelities: tuple[float, float] | None) -> str:
    """Of the sample's batches, where they differ."""
    lowest, highest = fidelities or (1.0, 1.0)
    return f" ({lowest:.4f} to {highest:.4f})" if highest - lowest >= 1e-4 else ""


def _measured(peak_bytes: int, budget_bytes: int, process_peak_bytes: int) -> tuple[str, str, str]:
    return amount(peak_bytes), f"{100 * peak_bytes / budget_bytes:.1f} %", amount(process_peak_bytes)


def infeasible_table(facts: dict[str, Any]) -> RenderableType:
    """The least budget, what is live where it binds, and what would fit."""
    binding, suggestions = facts["binding"], facts["suggestions"]
    amounts = Table(show_header=False)
    amounts.add_row("budget", amount(facts["budget_bytes"]))
    amounts.add_row("least budget", f"{amount(facts['least_budget_bytes'])} ({facts['least_budget_bytes']:,} bytes)", style="bold")
    live = Table(title=f"What binds there: {binding['phase']} of {binding['operation']}", title_justify="left")
    for name in ("tensor", "kind", "bytes", "share"):
        live.add_column(name, justify="right" if name in ("bytes", "share") else "left", overflow="fold")
    for tensor in binding["tensors"]:
        live.add_row(tensor["name"], tensor["kind"], amount(tensor["bytes"]), f"{100 * tensor['share']:.1f} %")
    if not suggestions:
        return Group(amounts, Text(), live)
    changes = Table(title="Changes that would fit, each tried", title_justify="left")
    for name in ("change", "least budget then", "fidelity in this budget"):
        changes.add_column(name, justify="left" if name == "change" else "right", overflow="fold")
    for suggestion in suggestions:
        changes.add_row(suggestion["change"], amount(suggestion["least_budget_bytes"]), f"{suggestion['fidelity']:.4f}")
    return Group(amounts, Text(), live, Text(), changes)


def frontier_table(answer: FrontierAnswer) -> RenderableType:
    """One line a budget, and what changes there."""
    table = Table(title="The frontier, as predicted", title_justify="left")
    for name in ("budget", "peak", "fidelity", "at most", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("train", "what changes"):
        table.add_column(name, overflow="fold")
    for point in answer.points:
        table.add_row(
            amount(point.budget_bytes),
            amount(point.predicted_peak_bytes),
            f"{point.fidelity:.4f}",
            f"{point.bound:.4f}",
            f"{point.slowdown:.2f}×",
            str(point.trained),
            "; ".join(point.changes),
        )
    return table


def devices_table(presets: tuple[Preset, ...]) -> RenderableType:
    """What a training step may have of each device's memory."""
    table = Table(title="Devices", title_justify="left")
    for name in ("id", "name"):
        table.add_column(name)
    for name in ("memory", "system", "budget"):
        table.add_column(name, justify="right")
    for preset in presets:
        table.add_row(preset.id, preset.name, amount(preset.memory_bytes), amount(preset.system_bytes), amount(preset.budget_bytes))
    return table


def _alternatives(plan: Plan) -> Table:
    table = Table(title="Simpler ways in the same budget, as predicted", title_justify="left")
    for name in ("", "peak", "fidelity", "time", ""):
        table.add_column(name, justify="right" if name else "left")
    for each in plan.alternatives:
        if each.fits:
            cells = amount(each.predicted_peak_bytes), f"{each.fidelity:.4f}", f"{each.slowdown:.2f}×", _facts(each)
        else:
            cells = "", "", "", "nothing of it fits"
        table.add_row(WAYS[each.name], *cells)
    table.add_row("the plan", amount(plan.predicted_peak_bytes), f"{plan.fidelity:.4f}", f"{plan.slowdown:.2f}×", "", style="bold")
    return table


def _facts(alternative: Alternative) -> str:
    facts = dict(alternative.facts)
    if "trained" in facts:
        facts["trained"] = f"{len(facts['trained'])} parameters"  # type: ignore[arg-type]
    return ", ".join(name if value is True else f"{name} {value}" for name, value in facts.items())


def model_table(model: ModelSummary) -> RenderableType:
    """What a model takes, gives and holds."""
    ends = Table(title="Inputs and outputs", title_justify="left")
    for name in ("", "name", "shape", "dtype"):
        ends.add_column(name)
    for index, wanted in enumerate(model.inputs):
        shape = "×".join("any" if size is None else str(size) for size in wanted.shape)
        ends.add_row(f"inputs.{index}", wanted.name, shape, wanted.dtype)
    for output in model.outputs:
        ends.add_row("output", output, "", "")
    parameters = Table(title="Parameters", title_justify="left", caption_justify="left")
    for name in ("name", "shape", "bytes"):
        parameters.add_column(name, justify="right" if name == "bytes" else "left")
    for parameter in model.parameters:
        parameters.add_row(parameter.name, "×".join(map(str, parameter.shape)), amount(parameter.bytes))
    total = amount(sum(parameter.bytes for parameter in model.parameters))
    parameters.caption = f"{len(model.parameters)} parameters, {total}; buffers {amount(model.buffers_bytes)}"
    operations = Table(title="Operations", title_justify="left")
    operations.add_column("operation")
    operations.add_column("times", justify="right")
    for operation, times in sorted(model.operations.items(), key=lambda item: (-item[1], item[0])):
        operations.add_row(operation, str(times))
    return Group(ends, Text(), parameters, Text(), operations)


def _settings(choice: ActivationChoice) -> str:
    return ", ".join(f"{name} {_value(name, value)}" for name, value in choice.settings.items())


def _value(name: str, value: object) -> str:
    match value:
        case int() if name.endswith("bytes"):
            return amount(value)
        case float():
            return f"{value:.4g}"
        case dict():
            return " ".join(_value(key, item) for key, item in value.items())
        case tuple() | list():
            return ("×" if all(isinstance(item, int) for item in value) else ", ").join(_value("", item) for item in value)
        case _:
            return str(value)


def _some(names: tuple[str, ...], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)})" if len(names) > most else "")
