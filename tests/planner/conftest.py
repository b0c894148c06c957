"""What several tests plan for."""

import pytest

from tests.planner.networks import graph_of, profile_of
from tests.planner.plans import NAMES, Case


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    graph, sample, loss = graph_of(request.param)
    return graph, sample, profile_of(graph, sample, loss)
