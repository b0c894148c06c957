"""Networks with what is awkward: branches, in-place rectifiers, groups, uneven padding, dropout, attention, shared inputs."""

import math
import warnings

import torch
from torch import Tensor, nn

from planner.capture import TrainingGraph, capture
from planner.profile import Profile
from planner.profiling import make_profile
from planner.request import ProfileSettings

F = torch.nn.functional


class Convolutional(nn.Module):
    """Residual, depthwise, grouped, `same` with an even kernel, reflecting padding, all rectifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (3, 5), stride=(1, 2), padding=(1, 2), bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.grouped = nn.Conv2d(8, 8, (2, 4), padding="same", groups=2)
        self.reflecting = nn.Conv2d(8, 16, 3, padding=1, padding_mode="reflect")
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(16, 5)
        self.tied = nn.Linear(16, 5)
        self.tied.weight = self.head.weight

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(image)), inplace=True)
        x = x + F.leaky_relu(self.depthwise(x), 0.1, inplace=True)
        x = F.relu(self.grouped(x)) + x
        x = F.max_pool2d(F.relu(self.reflecting(x)), 2)
        x = self.dropout(x.mean((2, 3)))
        result: Tensor = self.head(x) + self.tied(x)
        return result


class Attending(nn.Module):
    """One block with q, k and v from one input; returns its own loss in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 12, padding_idx=0)
        self.position = nn.Parameter(torch.randn(6, 12) * 0.1)
        self.norm = nn.LayerNorm(12)
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = self.embedding(tokens) + self.position
        y = self.norm(x)
        q, k, v = (layer(y).unflatten(-1, (3, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        x = x + self.down(F.gelu(self.up(x)))
        logits = self.head(x.mean(1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Gated(nn.Module):
    """Every norm and activation function that works itself out again, unequal branches, pooling, padding, upsampling, and attention
    whose queries, keys and values are views of one tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(12, 6, 3)
        self.group, self.layer, self.root = nn.GroupNorm(3, 6), nn.LayerNorm(6), nn.RMSNorm(6)
        self.attention, self.gate, self.head = nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = F.silu(self.group(self.stem(image)))
        x = torch.cat([F.avg_pool2d(x, 2), F.adaptive_avg_pool2d(F.hardswish(x), (3, 4))], 1)
        x = F.mish(self.wide(F.pad(F.interpolate(x, scale_factor=2.0), (0, 1))))
        tokens = self.layer(F.softplus(x).flatten(2).transpose(1, 2))
        q, k, v = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in self.attention(self.root(tokens)).chunk(3, -1))
        tokens = tokens + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        tokens = F.softmax(F.elu(tokens), -1) * torch.sigmoid(self.gate(F.gelu(tokens))) + torch.tanh(tokens)
        result: Tensor = self.head(tokens.mean(1))
        return result


class Rectified(nn.Module):
    """A relu that two convolutions read, and relus one after the other; one whose result is pooled and dropped out; a relu6; and a silu."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.other = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.chain = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.pooled, self.last, self.dropout = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 24, 1), nn.Dropout(0.2)
        self.smooth, self.head = nn.Conv2d(24, 8, 1), nn.Linear(8, 5)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        x = F.relu(self.one(x) + self.other(x))
        for convolution in self.chain:
            x = F.relu(convolution(x))
        x = F.relu6(self.pooled(self.dropout(F.max_pool2d(x, 2))))
        x = F.silu(self.last(x))
        result: Tensor = self.head(F.relu(self.smooth(x)).mean((2, 3)))
        return result


class UNet(nn.Module):
    """Down and up again by transposed convolutions, of overlapping kernels, groups and dilation, with what was before beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.over = nn.ConvTranspose2d(16, 8, 3, (2, 1), (1, 2), (1, 0), groups=2, dilation=(1, 2))
        self.line, self.head = nn.ConvTranspose1d(8, 6, 4, 2, 1, bias=False), nn.Conv1d(6, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = F.relu(self.stem(image))
        x = F.relu6(self.norm(self.down(first)))
        x = F.silu(self.up(F.relu(self.deep(x))))
        x = F.leaky_relu(self.over(torch.cat([x, first], 1)), 0.1)
        result: Tensor = self.head(self.line(x.mean(2)))
        return result


class Written(nn.Module):
    """A small GPT: weights by columns, gelu written out, attention and sums with dropout, the embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.position = nn.Parameter(torch.randn(5, 8) * 0.1)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.sizes = {"qkv": (8, 24), "out": (8, 8), "up": (8, 16), "down": (16, 8)}
        self.weights = nn.ParameterDict({name: torch.randn(size) / size[0] ** 0.5 for name, size in self.sizes.items()})
        self.biases = nn.ParameterDict({name: torch.randn(size[1]) * 0.1 for name, size in self.sizes.items()})
        self.dropout = nn.Dropout(0.2)

    def layer(self, name: str, x: Tensor) -> Tensor:
        flat = torch.addmm(self.biases[name], x.view(-1, x.shape[-1]), self.weights[name])
        return flat.view(*x.shape[:-1], flat.shape[-1])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.dropout(self.embedding(tokens) + self.position)
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.layer("qkv", self.first(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.3)
        x = x + self.dropout(self.layer("out", y.transpose(1, 2).flatten(-2)))
        y = self.layer("up", self.second(x))
        y = 0.5 * y * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * torch.pow(y, 3.0))))
        x = x + self.layer("down", y)
        return F.linear(x, self.embedding.weight)


def written_sample(batch: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {"inputs.tokens": torch.randint(9, (batch, 5)), "targets": torch.randint(9, (batch, 5))}


def rectified_sample(batch: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return {"inputs.0": torch.randn(batch, 3, 8, 8), "targets": torch.randint(5, (batch,))}


def gated_sample(batch: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(4)
    return {"inputs.0": torch.randn(batch, 3, 6, 8), "targets": torch.randint(4, (batch,))}


def unet_sample(batch: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return {"inputs.0": torch.randn(batch, 3, 12, 16), "targets": torch.randint(4, (batch, 32))}


def convolutional_sample(batch: int = 8) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"inputs.0": torch.randn(batch, 3, 12, 20), "targets": torch.randint(5, (batch,))}


def attending_sample(batch: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {"inputs.tokens": torch.randint(11, (batch, 6)), "inputs.labels": torch.randint(3, (batch,))}


def export(model: nn.Module, sample: dict[str, Tensor]) -> torch.export.ExportedProgram:
    inputs = tuple(tensor for name, tensor in sample.items() if name != "targets")
    with warnings.catch_warnings(action="ignore"):  # torch warns of the uneven `same` padding
        return _export(model, inputs)


def _export(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    return torch.export.export(model, inputs, dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs))


def graph_of(name: str, dtype: torch.dtype = torch.float32) -> tuple[TrainingGraph, dict[str, Tensor], str]:
    """A graph with weights of its own, a sample, and its loss."""
    torch.manual_seed(0)
    if name == "convolutional":
        model, sample, loss = Convolutional(), convolutional_sample(), "cross_entropy"
        model.norm.running_mean, model.norm.running_var = torch.randn(8) * 0.1, torch.rand(8) + 0.5
    elif name == "gated":
        model, sample, loss = Gated(), gated_sample(), "cross_entropy"
    elif name == "rectified":
        model, sample, loss = Rectified(), rectified_sample(), "cross_entropy"
    elif name == "unet":
        model, sample, loss = UNet(), unet_sample(), "cross_entropy"
        model.norm.running_mean, model.norm.running_var = torch.randn(16) * 0.1, torch.rand(16) + 0.5
    elif name == "written":
        model, sample, loss = Written(), written_sample(), "cross_entropy"
    else:
        model, sample, loss = Attending(), attending_sample(), "output:loss"
    sample = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in sample.items()}
    return capture(export(model.to(dtype).train(), sample)), sample, loss


def profile_of(graph: TrainingGraph, sample: dict[str, Tensor], loss: str) -> Profile:
    return make_profile(graph, sample, ProfileSettings(loss=loss), lambda fraction, message: None)
