"""Models of the benchmark: `transformers` configurations with random weights, so that nothing is downloaded.

`python -m bench.models DIRECTORY` writes NAME.pt2 and NAME.safetensors for each of them.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

SEED = 0
CLASSES = 1000
IMAGE_SIDE = 224
TOKENS = 64
VOCABULARY = 30522


class ImageClassifier(nn.Module):
    """Images (batch, 3, 224, 224) to logits."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


class TextClassifier(nn.Module):
    """Token numbers (batch, 64) and labels (batch,) to the loss and the logits."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        output = self.network(input_ids=input_ids, labels=labels)
        return {"loss": output.loss, "logits": output.logits}


class LanguageModel(nn.Module):
    """Token numbers (batch, 64) to the loss of predicting each next one."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        output = self.network(input_ids=input_ids, labels=input_ids, use_cache=False)
        return {"loss": output.loss, "logits": output.logits}


class UNet(nn.Module):
    """Images (batch, 3, side, side) to one of eight classes a pixel: three halvings with skips, 16 channels at the top."""

    def __init__(self, width: int = 16, classes: int = 8) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(4)]
        self.down = nn.ModuleList(self.block(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(self.block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Sequential:
        convolutions = (nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False))
        first, second = convolutions
        return nn.Sequential(first, nn.BatchNorm2d(outputs), nn.ReLU(), second, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([skip, functional.interpolate(x, scale_factor=2.0, mode="nearest")], 1))
        result: Tensor = self.head(x)
        return result


def images(batch: int, side: int = IMAGE_SIDE) -> dict[str, Tensor]:
    """Smooth random textures: energy falls with frequency, as in photographs; white noise would have no spectrum to speak of."""
    grains = (4, 8, 16, 32, 64, side)
    layers = [functional.interpolate(torch.randn(batch, 3, grain, grain), size=side, mode="bilinear") / grain**0.5 for grain in grains]
    texture = torch.stack(layers).sum(0)
    return {"inputs.0": texture / texture.std(), "targets": torch.randint(CLASSES, (batch,))}


def scenes(batch: int) -> dict[str, Tensor]:
    """Textures of 96×96 with a class a pixel, by brightness."""
    pictures = images(batch, 96)["inputs.0"]
    return {"inputs.0": pictures, "targets": ((pictures.mean(1) * 2 + 4).clamp(0, 7)).long()}


def tokens(batch: int) -> Tensor:
    """Random token numbers, the frequent ones more often."""
    frequency = 1 / torch.arange(1, BERT.vocab_size + 1)
    return torch.multinomial(frequency.expand(batch, -1), TOKENS, replacement=True)


def texts(batch: int) -> dict[str, Tensor]:
    """Tokens with random labels."""
    return {"inputs.input_ids": tokens(batch), "inputs.labels": torch.randint(2, (batch,))}


# As most people train it: transformers would pad every convolution as TensorFlow does, in an operation of its own.
MOBILENET_V2 = MobileNetV2Config(num_labels=CLASSES, tf_padding=False)
RESNET_18 = ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], num_labels=CLASSES)
RESNET_50 = ResNetConfig(num_labels=CLASSES)
GPT = GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, n_positions=TOKENS, n_embd=192, n_layer=6, n_head=6)
VIT_TINY = ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=CLASSES)
VIT_B = ViTConfig(num_labels=CLASSES)
BERT = BertConfig(vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, num_labels=2)


@dataclass(frozen=True, slots=True)
class Case:
    """A model of the benchmark and how it is trained.

    Attributes:
        build: the network of its configuration, with random weights.
        sample: one batch of the given size, named as in a sample file.
        batch: samples a step.
        loss: as a plan request names it.
        block: class of its blocks.
    """

    build: Callable[[], nn.Module]
    sample: Callable[[int], dict[str, Tensor]]
    block: str
    batch: int = 8
    loss: str = "cross_entropy"


CASES = {
    "mobilenet_v2": Case(lambda: ImageClassifier(MobileNetV2ForImageClassification(MOBILENET_V2)), images, "MobileNetV2InvertedResidual"),
    "resnet_18": Case(lambda: ImageClassifier(ResNetForImageClassification(RESNET_18)), images, "ResNetBasicLayer"),
    "vit_tiny": Case(lambda: ImageClassifier(ViTForImageClassification(VIT_TINY)), images, "ViTLayer"),
    "vit_b": Case(lambda: ImageClassifier(ViTForImageClassification(VIT_B)), images, "ViTLayer"),
    "resnet_50": Case(lambda: ImageClassifier(ResNetForImageClassification(RESNET_50)), images, "ResNetBottleNeckLayer"),
    "unet": Case(UNet, scenes, "Sequential"),
    "gpt": Case(
        lambda: LanguageModel(GPT2LMHeadModel(GPT)),
        lambda batch: {"inputs.input_ids": tokens(batch)},
        "GPT2Block",
        batch=16,
        loss="output:loss",
    ),
    "bert_4": Case(lambda: TextClassifier(BertForSequenceClassification(BERT)), texts, "BertLayer", batch=16, loss="output:loss"),
}


def build(name: str) -> nn.Module:
    """The model of that name; the same weights every time, with batch statistics of its own sample."""
    torch.manual_seed(SEED)
    model = CASES[name].build()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if norms:
        # Random weights with the statistics of no data at all would let the signal die out before the head.
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(CASES[name].sample(CASES[name].batch)["inputs.0"])
        for norm in norms:
            norm.momentum = 0.1
    return model


def checkpoint_blocks(net: nn.Module, block: str) -> None:
    """Let every block of that class work its activations out again in backward, as `torch.utils.checkpoint` does."""
    for module in net.modules():
        if type(module).__name__ == block:
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def sample(name: str, batch: int | None = None) -> dict[str, Tensor]:
    """One batch for that model; the same every time."""
    torch.manual_seed(SEED)
    return CASES[name].sample(batch or CASES[name].batch)


def write_sample(name: str, path: Path, batch: int | None = None) -> None:
    save_file(sample(name, batch), path)


def export(name: str, path: Path, batch: int | None = None) -> None:
    """Write the model as an exported program whose batch may have any size."""
    model = build(name).train()
    inputs = {key.removeprefix("inputs."): tensor for key, tensor in sample(name, batch).items() if key.startswith("inputs.")}
    axis = torch.export.Dim("batch")
    positional, named = [inputs[key] for key in inputs if key.isdigit()], {key: inputs[key] for key in inputs if not key.isdigit()}
    program = torch.export.export(model, tuple(positional), named, dynamic_shapes=[{0: axis} for _ in inputs])
    program._example_inputs = None  # they would be pickled into the file, and nobody needs them
    torch.export.save(program, path)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("directory", type=Path)
    directory = arguments.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    for name in CASES:
        export(name, directory / f"{name}.pt2")
        write_sample(name, directory / f"{name}.safetensors")
        print(directory / f"{name}.pt2")
