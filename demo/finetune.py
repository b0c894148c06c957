"""Fine-tuning on the device, each method in a process of its own: `python -m demo.finetune METHOD CHECKPOINT`.

Prints what it took and what it brought as JSON. Every method starts from the same file and sees the same batches.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

import memfit
from bench.allocator import step_peak_bytes
from demo import data
from demo.network import DigitNet
from demo.training import accuracy

Method = Literal["plain", "memfit", "last-layer"]
EPOCHS = 12
BATCH_SIZE = 128
MOMENTUM = 0.9
LR = 0.008
LAST_LAYER_LR = 0.1  # the last layer alone bears, and needs, a greater one


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one way of fine-tuning took, and what it brought on the held-out part of the device's data."""

    peak_bytes: int
    accuracy_before: float
    accuracy_after: float
    step_seconds: float


def digit_net(weights: dict[str, Tensor]) -> DigitNet:
    """The original network with these weights, its batch norms frozen."""
    net = DigitNet()
    net.load_state_dict(weights)
    return net.eval()


class PlainStep:
    """One training step as torch does it by itself, with frozen batch norms."""

    def __init__(self, net: nn.Module, parameters: list[nn.Parameter], lr: float) -> None:
        net.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        self.net = net
        self.optimizer = torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, foreach=False)

    def __call__(self, images: Tensor, digits: Tensor) -> float:
        loss = functional.cross_entropy(self.net(images), digits)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def make_step(method: Method, checkpoint: Path) -> tuple[nn.Module, PlainStep | memfit.TrainingStep]:
    """The network to tune, and what runs one step of it."""
    if method == "memfit":
        model = memfit.load(checkpoint)
        return model, memfit.TrainingStep(model, lr=LR)
    net = digit_net(torch.export.load(checkpoint).state_dict)
    if method == "plain":
        return net, PlainStep(net, list(net.parameters()), LR)
    return net, PlainStep(net, list(net.classifier.parameters()), LAST_LAYER_LR)


def fine_tune(method: Method, checkpoint: Path) -> Outcome:
    """Tune by one method, measure the first steps, and judge the tuned weights in the original network."""
    digits = data.load()
    torch.manual_seed(0)
    net, step = make_step(method, checkpoint)
    before = accuracy(digit_net(dict(net.state_dict())), digits.held_out)
    first = next(digits.device.batches(BATCH_SIZE))
    peak_bytes = step_peak_bytes(
        lambda: step(first.images, first.digits), lambda: [*net.parameters(), *net.buffers(), first.images, first.digits]
    )
    seconds = []
    for _ in range(EPOCHS):
        for batch in digits.device.batches(BATCH_SIZE):
            start = time.perf_counter()
            step(batch.images, batch.digits)
            seconds.append(time.perf_counter() - start)
    after = accuracy(digit_net(dict(net.state_dict())), digits.held_out)
    return Outcome(peak_bytes, before, after, median(seconds))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("method", choices=get_args(Method))
    arguments.add_argument("checkpoint", type=Path)
    given = arguments.parse_args()
    print(json.dumps(asdict(fine_tune(given.method, given.checkpoint))))
