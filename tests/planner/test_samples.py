"""Samples that do not fit the model, or hold what is no number."""

import pytest

from planner.errors import BadSample
from planner.sample import batches_of
from tests.planner.networks import graph_of
from tests.planner.plans import Case


def test_samples_that_do_not_fit_are_refused_with_what_fits(case: Case) -> None:
    graph, sample, profile = case
    first = next(iter(sample))
    wrong = {
        "takes": {**sample, first: sample[first][:, :2]},
        "has no tensor": {name: tensor for name, tensor in sample.items() if name != first},
        "which the model does not take": {**sample, "inputs.more": sample[first]},
        "first axis": {**sample, first: sample[first][:3]},
    }
    for message, bad in wrong.items():
        with pytest.raises(BadSample, match=message):
            batches_of(bad, graph.inputs, profile.loss, None)
    with pytest.raises(BadSample, match="fewer than one batch"):
        batches_of(sample, graph.inputs, profile.loss, 100)


def test_values_that_are_not_finite_are_found() -> None:
    graph, sample, loss = graph_of("convolutional")
    sample["inputs.0"][2, 1, 0, 3] = float("nan")
    with pytest.raises(BadSample, match=r"not finite at \[2, 1, 0, 3\]"):
        batches_of(sample, graph.inputs, loss, None)
