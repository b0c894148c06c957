"""Where a model is divided."""

import torch
from torch import nn

from planner.capture import capture
from tests.planner.networks import export, profile_of


def test_a_short_model_is_divided_before_its_head_and_not_after_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 3 * 3, 5))
    sample = {"inputs.0": torch.randn(4, 3, 8, 8), "targets": torch.randint(5, (4,))}
    profile = profile_of(capture(export(model, sample)), sample, "cross_entropy")
    assert profile.splits == ("flatten",)  # the logits are smaller still, but no weight is read after them
