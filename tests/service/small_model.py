"""A model as small as one with every kind of operation can be."""

from pathlib import Path

import torch
from torch import nn

BATCH = 8


class SmallNet(nn.Module):
    """Convolutions, norms and a classifier: enough for every technique, small enough for a whole plan in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
        )
        self.classifier = nn.Linear(256, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.features(image)
        logits: torch.Tensor = self.classifier(features.flatten(1))
        return logits


def export(model: nn.Module, *inputs: torch.Tensor, to: Path) -> Path:
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    torch.export.save(torch.export.export(model, inputs, dynamic_shapes=dynamic), to)
    return to
