"""Trained networks and real images, on which to measure what techniques lose.

With a folder of data (`--data`), CIFAR-10 images: a ResNet-20 whose weights lie there, and a MobileNet and a ViT trained on
1500 of the images. Without one, the digits of scikit-learn, on which a MobileNet and a ViT are trained. Training takes about two minutes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

TRAINING_IMAGES, BATCH = 1500, 64
EPOCHS = 10


@dataclass(frozen=True, slots=True)
class Images:
    """Normalised images (count, channels, 32, 32) and their classes, in a fixed random order."""

    images: Tensor
    classes: Tensor


def load_images(data: Path | None) -> Images:
    if data is None:
        bunch = load_digits()
        small = torch.tensor(bunch.images / 16.0, dtype=torch.float32)[:, None]
        images, classes = functional.interpolate(small, size=(32, 32), mode="bilinear"), torch.tensor(bunch.target)
    else:
        archive = np.load(data / "cifar10_lossless.npz")
        images, classes = torch.tensor(archive["x"]).permute(0, 3, 1, 2).float() / 255, torch.tensor(archive["y"]).long()
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        images = (images - mean[:, None, None]) / deviation[:, None, None]
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    return Images(images[order], classes[order])


def networks(data: Path | None, images: Images) -> dict[str, nn.Module]:
    """The networks, trained."""
    torch.manual_seed(0)
    channels = images.images.shape[1]
    made: dict[str, nn.Module] = {}
    if data is not None:
        made["resnet_20"] = ResNet20()
        made["resnet_20"].load_state_dict(load_file(data / "resnet20_cifar10.safetensors"), strict=False)
    mobile, vit = MobileNet(channels), VisionTransformer(channels)
    train(mobile, images, torch.optim.SGD(mobile.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4))
    train(vit, images, torch.optim.AdamW(vit.parameters(), lr=1e-3, weight_decay=0.05))
    return made | {"mobilenet": mobile, "vit": vit}


def train(net: nn.Module, images: Images, optimizer: torch.optim.Optimizer) -> None:
    net.train()
    steps = EPOCHS * (TRAINING_IMAGES // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.02, 1 - step / steps))
    for _ in range(EPOCHS):
        for chosen in torch.randperm(TRAINING_IMAGES)[: TRAINING_IMAGES // BATCH * BATCH].split(BATCH):
            loss = functional.cross_entropy(net(images.images[chosen]), images.classes[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def normed(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two 3×3 convolutions; where the shape changes, the shortcut takes every second place and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(x + y)


class ResNet20(nn.Module):
    """For 32×32 images, with the parameter names of its published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Residual(16, 16, 1), Residual(16, 16, 1), Residual(16, 16, 1))
        self.layer2 = nn.Sequential(Residual(16, 32, 2), Residual(32, 32, 1), Residual(32, 32, 1))
        self.layer3 = nn.Sequential(Residual(32, 64, 2), Residual(64, 64, 1), Residual(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(images)))
        logits: Tensor = self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))
        return logits


class Inverted(nn.Module):
    def __init__(self, inputs: int, expansion: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.layers = nn.Sequential(
            normed(inputs, hidden, 1), nn.ReLU6(), normed(hidden, hidden, 3, stride, hidden), nn.ReLU6(), normed(hidden, outputs, 1)
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        shapes = ((16, 1, 16, 1), (16, 6, 24, 2), (24, 6, 24, 1), (24, 6, 32, 2), (32, 6, 32, 1), (32, 6, 64, 1), (64, 6, 64, 1))
        blocks = [Inverted(*shape) for shape in shapes]
        self.layers = nn.Sequential(normed(channels, 16, 3), nn.ReLU6(), *blocks, normed(64, 128, 1), nn.ReLU6())
        self.head = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(images).mean((2, 3)))
        return logits


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        parts = [layer(y).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        x = x + self.out(functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(-2))
        result: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return result


class VisionTransformer(nn.Module):
    """Patches of 4×4, 4 blocks of 128 features, 64 tokens."""

    def __init__(self, channels: int, size: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.patches, self.position = nn.Conv2d(channels, size, 4, 4), nn.Parameter(torch.randn(64, size) * 0.02)
        self.blocks, self.norm = nn.Sequential(*(Block(size) for _ in range(depth))), nn.LayerNorm(size)
        self.head = nn.Linear(size, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT + self.position
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


@dataclass(slots=True)
class Layer:
    """One layer's inputs and output gradients, of several batches, and its weight gradient as a function of the two."""

    name: str
    family: str
    feature: int
    rectified: bool
    inputs: list[Tensor]
    output_gradients: list[Tensor]
    weight_gradient: Callable[[Tensor, Tensor], Tensor]


def layers_of(name: str, net: nn.Module, batches: list[Images], batch_norm: str) -> list[Layer]:
    """Every convolution and linear layer but those that read the images or feed the loss, in real backward passes."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and batch_norm == "frozen":
            module.eval()
    layers: dict[str, Layer] = {}
    handles = []
    for place, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and place not in ("head", "linear", "patches"):
            layer = layers[place] = Layer(f"{name} {place}", family_of(module), 0, False, [], [], gradient_of(module))
            handles.append(module.register_forward_hook(watch(layer)))
    for batch in batches:
        functional.cross_entropy(net(batch.images), batch.classes).backward()
        net.zero_grad()
    for handle in handles:
        handle.remove()
    return [layer for layer in layers.values() if layer.inputs[0].shape[1] > 3]


def watch(layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def see(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach()
        layer.inputs.append(x.clone(memory_format=torch.contiguous_format))
        layer.feature = 1 if x.dim() == 4 else x.dim() - 1
        layer.rectified = x.dim() == 4 and float(x.min()) >= 0
        output.register_hook(lambda gradient: layer.output_gradients.append(gradient.clone()))

    return see


def family_of(module: nn.Conv2d | nn.Linear) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    return "depthwise" if module.groups > 1 else f"conv {module.kernel_size[0]}×{module.kernel_size[1]}"


def gradient_of(module: nn.Conv2d | nn.Linear) -> Callable[[Tensor, Tensor], Tensor]:
    if isinstance(module, nn.Linear):
        return lambda gradient, x: gradient.flatten(0, -2).mT @ x.flatten(0, -2)
    settings = (module.stride, module.padding, module.dilation, module.groups)
    return lambda gradient, x: conv2d_weight(x, module.weight.shape, gradient, *settings)
