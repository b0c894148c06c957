"""A model of several blocks: where it may be divided, and what its step in segments takes, measured."""

import dataclasses
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import memfit
from bench.allocator import step_peak_bytes
from memfit.checkpoint import apply
from planner.capture import TrainingGraph, capture
from planner.dividing import Dividing
from planner.footprint import timeline
from planner.patching import recipe_of
from planner.plan import Schedule
from planner.profile import Profile
from planner.request import Budget, Optimizer, PlanRequest
from planner.schedules import without_options
from planner.solver import plain_peak_bytes, solve
from planner.timeline import exact_choices
from tests.planner.networks import export, profile_of

F = torch.nn.functional
BLOCKS = 3
MOMENTUM = Optimizer("sgd", 0.9)


class Block(nn.Module):
    """Attention to the places that are not masked, and two layers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, masked: Tensor) -> Tensor:
        y = self.first(x).unflatten(-1, (4, -1)).transpose(1, 2)
        x = x + F.scaled_dot_product_attention(y, y, y, masked).transpose(1, 2).flatten(-2)
        x = x + self.down(F.gelu(self.up(self.second(x))))
        return x


class Reader(nn.Module):
    """Blocks that share a mask, which is worked out of the tokens."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, width), nn.Linear(width, 5)
        self.blocks = nn.ModuleList(Block(width) for _ in range(BLOCKS))

    def forward(self, tokens: Tensor) -> Tensor:
        masked = torch.zeros_like(tokens, dtype=torch.float32).masked_fill(tokens == 0, -1e4)[:, None, None]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, masked)
        result: Tensor = self.head(x.mean(1))
        return result


@cache
def reader() -> tuple[TrainingGraph, dict[str, Tensor], Profile]:
    torch.manual_seed(0)
    sample = {"inputs.0": torch.randint(50, (4, 64)), "targets": torch.randint(5, (4,))}
    graph = capture(export(Reader().train(), sample))
    return graph, sample, profile_of(graph, sample, "cross_entropy")


def measured_peak_bytes(graph: TrainingGraph, sample: dict[str, Tensor], recipe: memfit.recipe.Recipe) -> int:
    module = apply(graph.program, recipe)
    step = memfit.TrainingStep(module, lr=0.0)
    inputs, targets = sample["inputs.0"], sample["targets"]
    return step_peak_bytes(lambda: step(inputs, targets), lambda: [*module.parameters(), *module.buffers(), inputs, targets])


def test_a_model_is_divided_between_its_blocks_though_they_share_a_mask() -> None:
    _, _, profile = reader()
    assert profile.splits == ("embedding", *("add", *(f"add_{n}" for n in range(1, 2 * BLOCKS - 1))), "mean")


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("size", [4, 1])
@pytest.mark.parametrize("places", [(3,), (1, 2, 3)], ids=str)
def test_the_peak_of_segments_is_the_predicted(places: tuple[int, ...], size: int, early: bool) -> None:
    graph, sample, profile = reader()
    schedule = Schedule(4, early, tuple(f"add_{n}" for n in places), size)
    made = timeline(profile, MOMENTUM, schedule)
    choices = exact_choices(made.step, frozenset(parameter.name for parameter in profile.parameters))
    in_place = (o.name for o in made.step.operations if o.over and (o.over.activation is None or o.over.activation not in choices.whole))
    recipe = dataclasses.replace(
        graph.exact_recipe(profile.loss),
        optimizer=dataclasses.asdict(MOMENTUM),
        in_place=tuple(in_place),
        rows=tuple(profile.whole.rows),
        early_updates=early,
        splits=schedule.splits,
        slice=size,
    )
    measured = measured_peak_bytes(graph, sample, recipe)
    assert measured == pytest.approx(made.peak_bytes(choices), rel=0.001)


def test_a_plan_without_loss_is_in_segments_and_as_small_as_predicted() -> None:
    graph, sample, profile = reader()
    beyond = plain_peak_bytes(profile, MOMENTUM) - profile.static_bytes
    budget = Budget(amount_bytes=profile.static_bytes + beyond // 3)
    plan = solve(profile, PlanRequest(budget, MOMENTUM, techniques=("mask", "recompute", "slices", "early_update")))
    assert plan.fidelity == 1.0 and len(plan.schedule.splits) > 1
    assert measured_peak_bytes(graph, sample, recipe_of(profile, plan)) == pytest.approx(plan.predicted_peak_bytes, rel=0.01)


@pytest.mark.parametrize("early", [False, True])
def test_ways_to_divide_are_weighed_by_about_what_they_take(early: bool) -> None:
    _, _, profile = reader()
    dividing = Dividing(without_options(profile), MOMENTUM, early, frozenset(parameter.name for parameter in profile.parameters))
    ways = dividing.schedules()
    assert len(ways) > 10 and {schedule.slice for schedule, _, _ in ways} == {step.batch_size for step in profile.steps}
    for schedule, peak, more in ways[::3]:
        made = timeline(dividing.profile, MOMENTUM, schedule)
        everything = exact_choices(made.step, dividing.trainable)
        assert made.peak_bytes(everything) == pytest.approx(peak, rel=0.1), schedule
        assert made.seconds(everything) == pytest.approx(dividing.seconds + more, rel=0.03), schedule
