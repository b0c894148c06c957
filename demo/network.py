"""A small MobileNetV2: a stem, inverted residual blocks with ReLU6 and batch norm, a head. In plain torch, knowing nothing of memfit."""

import torch
from torch import Tensor, nn

# expansion, out_channels, stride: one row a block
BLOCKS = ((1, 16, 1), (4, 24, 2), (4, 24, 1), (4, 24, 1), (4, 32, 2), (4, 32, 1), (4, 32, 1))
STEM_CHANNELS = 16
HEAD_CHANNELS = 128


def convolution(in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution with batch norm after it, and no bias of its own."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class InvertedResidual(nn.Module):
    """Expand, filter each channel for itself, project back; the input is added where its shape allows it."""

    def __init__(self, in_channels: int, expansion: int, out_channels: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = convolution(in_channels, hidden)
        self.filter = convolution(hidden, hidden, kernel_size=3, stride=stride, groups=hidden)
        self.project = convolution(hidden, out_channels)
        self.activation = nn.ReLU6()
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.activation(self.expand(features))
        hidden = self.activation(self.filter(hidden))
        projected: Tensor = self.project(hidden)
        return features + projected if self.residual else projected


class DigitNet(nn.Module):
    """Grey images (batch, 1, 32, 32) to the logits of ten digits."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = convolution(1, STEM_CHANNELS, kernel_size=3, stride=2)
        channels = STEM_CHANNELS
        blocks: list[nn.Module] = []
        for expansion, out_channels, stride in BLOCKS:
            blocks.append(InvertedResidual(channels, expansion, out_channels, stride))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = convolution(channels, HEAD_CHANNELS)
        self.activation = nn.ReLU6()
        self.classifier = nn.Linear(HEAD_CHANNELS, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(self.activation(self.stem(images)))
        features = self.activation(self.head(features))
        logits: Tensor = self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1))
        return logits
