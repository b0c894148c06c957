"""Which activations can be worked out again, from what, and what that costs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from memfit.chains import PRODUCTS, VIEWS, chain_of, is_batch_size, repeatable, steps
from memfit.operators.held import samples_at_once
from memfit.recipe import RECOMPUTE
from planner.activations import holds_inputs
from planner.capture import NamedRun, TrainingGraph
from planner.fidelity import holders_of_values
from planner.profile import Activation, Form, Operation, Option, Setting
from planner.sample import Batch
from planner.structure import Structure

LONGEST = 20  # operations of a chain
MOST_PRODUCTS = 2  # of them convolutions and linear layers: each costs about a third of a step of its layer
MOST_SOURCES = 4
TOLERANCE = 1e-3  # of the value's norm: rounding, where samples are worked out a few at a time


@dataclass(frozen=True, slots=True)
class Recomputation:
    """A value and the nodes it can be worked out again from."""

    value: Node
    sources: tuple[Node, ...]


def recomputations(graph: TrainingGraph, batch: Batch) -> list[Recomputation]:
    """All that are worth a choice, each tried on the last sample by itself: its chain gives the value that the step has."""
    nodes = {node.name: node for node in graph.operations}
    read = (x.name for inputs in graph.repeated.values() for x in inputs if x.name in nodes)
    values_held = dict.fromkeys((*holders_of_values(graph), *read))
    found = [Recomputation(nodes[value], sources) for value in values_held for sources in _cuts(nodes[value])]
    wanted = {node.name for each in found for node in (each.value, *each.sources)}
    values: dict[str, Tensor] = {}
    parameters = dict(graph.module.named_parameters(remove_duplicate=False)) | dict(graph.module.named_buffers(remove_duplicate=False))

    def observe(node: Node, args: tuple[Any, ...], result: Any) -> None:
        if node.name in wanted and isinstance(result, Tensor):
            values[node.name] = result

    with torch.no_grad():
        NamedRun(graph.exact_without_dropout, observe).run(*batch.inputs)
    inputs = [node.name for node in graph.module.graph.nodes if node.op == "placeholder"]
    values |= dict(zip(inputs, batch.inputs, strict=True))
    return [each for each in found if _holds(each, values, parameters)]


def _cuts(value: Node) -> Iterator[tuple[Node, ...]]:
    """Sets of nodes from which a value follows, nearer ones first: the latest of them is replaced by what it reads, again and again."""
    order = {node: number for number, node in enumerate(value.graph.nodes)}
    cut = {value}
    for _ in range(LONGEST):
        latest = max(cut, key=order.__getitem__)
        if not repeatable(latest):
            return
        cut = (cut - {latest}) | {node for node in latest.all_input_nodes if node.op != "get_attr" and not is_batch_size(node)}
        chain = steps(value, cut)
        products = {node.args[0] for node in chain if node.target in PRODUCTS}  # of one input, such as q, k and v: one
        if not cut or len(cut) > MOST_SOURCES or len(products) > MOST_PRODUCTS:
            return
        if not any(node.target in VIEWS for node in cut):  # what is behind them is the same storage
            yield tuple(sorted(cut, key=order.__getitem__))


def _holds(each: Recomputation, values: dict[str, Tensor], parameters: dict[str, Tensor]) -> bool:
    """Whether the chain gives the value again, as it is at the end of forward (an operation may have changed it in place)."""
    names = (each.value.name, *(source.name for source in each.sources))
    if not all(name in values for name in names):
        return False
    truth = values[each.value.name]
    chain, tensors = chain_of(each.value, each.sources)
    held = tuple(parameters[str(node.target)] if node.op == "get_attr" else values[node.name] for node in tensors)
    if not all(source.dim() and source.shape[0] == truth.shape[0] for source in held[: chain.sources]):
        return False
    try:
        found = chain.restore(held, truth.shape, truth.shape[0] - 1, truth.shape[0])
    except (RuntimeError, IndexError):
        return False
    wanted = truth[-1:]
    return found.shape == wanted.shape and bool((found - wanted).norm() <= TOLERANCE * wanted.norm())


def with_recomputations(
    graph: TrainingGraph,
    found: list[Recomputation],
    structure: Structure,
    activations: tuple[Activation, ...],
    operations: tuple[Operation, ...],
    parameters: dict[str, int],
) -> tuple[Activation, ...]:
    """The activations with these further options, at the sizes of one step. `parameters`: bytes of each."""
    at = {structure.storages[number].name: number for number in range(len(structure.storages))}
    activation_of = {at[activation.name]: a for a, activation in enumerate(activations) if activation.name in at}
    by_value: dict[str, list[Recomputation]] = {}
    for each in found:
        by_value.setdefault(each.value.name, []).append(each)

    def option(each: Recomputation, form: Form, holders: list[int]) -> Option | None:
        sources = [structure.storage_of[node.name] for node in each.sources]
        held = [source for source in sources if structure.storages[source].producer >= 0]  # model inputs are there anyway
        if not all(source in activation_of for source in held):
            return None
        indices = tuple(sorted({activation_of[source] for source in held}))
        released = [min(holder.operation for holder in activations[index].holders) for index in indices]
        if any(last > min(holders) for last in released):  # the source would go too early
            return None
        chain = steps(each.value, each.sources)
        seconds = sum(operations[structure.names.index(node.name)].forward_seconds for node in chain)
        settings: dict[str, Setting] = {"sources": tuple(node.name for node in each.sources)}
        return Option(RECOMPUTE, settings, 0, 0, _bytes(chain, structure, operations, parameters), {}, seconds * len(holders), indices)

    def more(activation: Activation, index: int) -> Activation:
        forms = []
        for form in activation.forms:
            holders = [activation.holders[h].operation for h in form.holders]
            names = [operations[holder].name for holder in holders]
            restoring = all(  # by samples
                activation.holders[h].needed_for == "weight" or form.value in {x.name for x in graph.repeated.get(name, ())}
                for h, name in zip(form.holders, names, strict=True)
            )
            options = [option(each, form, holders) for each in by_value.get(form.value, ()) if restoring]
            useful = [o for o in options if o is not None and index not in o.sources]
            if names == [form.value] and holds_inputs(graph, structure, form.value):  # what an operation keeps of its own
                useful.append(Option(RECOMPUTE, {}, 0, 0, 0, {}, operations[holders[0]].forward_seconds))
            forms.append(replace(form, options=(*form.options, *useful)))
        return replace(activation, forms=tuple(forms))

    return tuple(more(activation, index) for index, activation in enumerate(activations))


def _bytes(chain: list[Node], structure: Structure, operations: tuple[Operation, ...], parameters: dict[str, int]) -> int:
    """Most bytes live at once while some samples of a chain's value are worked out, the value among them."""
    itemsize = 4 if structure.storages[structure.storage_of[chain[-1].name]].dtype == "float32" else 8
    shapes = {node: structure.shape_of[node.name] for node in chain if node.name in structure.shape_of}  # a split's result is several views
    value = shapes[chain[-1]]
    share = samples_at_once(value, itemsize) / value[0]
    last_use = {source: node for node in chain for source in node.all_input_nodes if source in shapes}
    live: dict[Node, float] = {}
    most = 0.0
    for node in chain:
        if node in shapes:
            live[node] = itemsize * prod(shapes[node]) * share
        operation = operations[structure.names.index(node.name)]
        laid_out = min(max(0, operation.forward_bytes), sum(parameters[name] for name in operation.parameters))  # weights, anew
        most = max(most, sum(live.values()) + laid_out + share * max(0, operation.forward_bytes - laid_out))
        for source in [source for source in live if last_use.get(source) is node]:
            del live[source]
    return int(most)
