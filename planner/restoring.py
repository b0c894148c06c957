"""What the holders of a form need, beyond what is held, to work out the gradients of their weights from it."""

from collections.abc import Iterable
from math import prod

import torch
from torch.fx import Node

from memfit.forms import Form, Projection
from memfit.operators import conv, linear
from memfit.operators.conv import CONVOLUTIONS
from memfit.operators.held import samples_at_once
from memfit.operators.linear import TRANSPOSED_LINEAR
from memfit.rewriting import conv_arguments
from planner.capture import TrainingGraph
from planner.structure import Structure

aten = torch.ops.aten


def restore_bytes(
    form: Form, shape: tuple[int, ...], itemsize: int, holders: Iterable[Node], graph: TrainingGraph, structure: Structure
) -> int:
    """Most bytes live at once for the holder that needs most: of samples restored, or with their features left in directions, of these and
    then the gradient with respect to the directions.
    """
    samples, most = samples_at_once(shape, itemsize), 0
    for holder in holders:
        left = features_left(form, shape, holder, graph, structure)
        if left is None:
            most = max(most, form.restore_bytes(shape, itemsize, samples))
        else:
            assert isinstance(form, Projection)
            gradient = itemsize * prod(_weight_shape(holder, graph)) * form.most_directions(shape, left) // shape[left]
            most = max(most, form.restore_bytes(shape, itemsize, samples, left), gradient + form.restore_bytes(shape, itemsize, 0, left))
    return most


def features_left(form: Form, shape: tuple[int, ...], holder: Node, graph: TrainingGraph, structure: Structure) -> int | None:
    """The mode that the holder leaves in its directions; None where it restores all."""
    result_shape = structure.shape_of[holder.name]
    if holder.target in CONVOLUTIONS:
        return conv.features_left(form, shape, _weight_shape(holder, graph), result_shape, conv_arguments(holder))
    if holder.target in (aten.linear.default, TRANSPOSED_LINEAR):
        return linear.features_left(form, shape, result_shape[-1])
    return None


def _weight_shape(holder: Node, graph: TrainingGraph) -> tuple[int, ...]:
    return tuple(graph.module.get_parameter(str(graph.weight_of(holder))).shape)
