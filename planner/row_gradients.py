"""Which parameters get their gradient as rows: large tables that embeddings alone read, and of which a batch reads few rows."""

from collections.abc import Iterable
from math import prod

import torch

from memfit.arguments import arguments
from memfit.row_updates import range_bytes
from planner.capture import TrainingGraph
from planner.profile import Parameter
from planner.structure import Structure

aten = torch.ops.aten
NUMBER_BYTES = 8  # of a row's number


def row_gradients(graph: TrainingGraph, structure: Structure) -> dict[str, int]:
    """For each parameter that embeddings alone read, the bytes of its gradient as rows, at the structure's size."""
    found: dict[str, int] = {}
    other = set[str]()
    for node in graph.operations:
        for name in graph.parameter_names(node):
            values = arguments(node) if node.target is aten.embedding.default else {}
            if values and not values["scale_grad_by_freq"] and not values["sparse"]:
                shape = structure.shape_of[node.name]
                rows = prod(shape[:-1])
                found[name] = found.get(name, 0) + rows * (shape[-1] * structure.itemsize(node.name) + NUMBER_BYTES)
            else:
                other.add(name)
    return {name: size for name, size in found.items() if name not in other}


def worth_rows(rows: dict[str, int], parameters: Iterable[Parameter]) -> frozenset[str]:
    """Of these parameters those that take less so, their update included: the rows, a range of the table, and the rows in it."""
    return frozenset(p.name for p in parameters if p.name in rows and 2 * rows[p.name] + range_bytes(p.shape, p.bytes) < p.bytes)
