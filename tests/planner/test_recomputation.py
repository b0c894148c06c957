"""What can be worked out again."""

import torch
from torch import Tensor, nn

from planner.capture import capture
from tests.planner.networks import export, profile_of


class Gated(nn.Module):
    """A gate by halves of one linear layer's result."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(7, 12), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.both(x).split(6, dim=2)
        logits: Tensor = self.down(value * gate).flatten(1)
        return logits


def test_chains_lead_through_a_split() -> None:
    sample = {"inputs.0": torch.randn(4, 3, 7), "targets": torch.randint(15, (4,))}
    profile = profile_of(capture(export(Gated(), sample)), sample, "cross_entropy")
    options = [option for activation in profile.whole.activations for form in activation.forms for option in form.options]
    through = [option for option in options if option.settings.get("sources") == ("x",)]
    assert through and all(option.restore_bytes >= 4 * 4 * 3 * (12 + 6) for option in through)
