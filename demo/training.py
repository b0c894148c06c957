"""What happens before a device sees the network: it is trained on upright digits and exported, with a sample of the device's data."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional

from demo.data import Digits
from demo.network import DigitNet

EPOCHS = 10
BATCH_SIZE = 64
PEAK_LR = 0.2
PIXEL_NOISE = 0.1


def train(digits: Digits) -> DigitNet:
    """A trained network, always the same on one machine."""
    torch.manual_seed(0)
    net = DigitNet().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=PEAK_LR, momentum=0.9, weight_decay=1e-4)
    steps = EPOCHS * (len(digits) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in digits.batches(BATCH_SIZE):
            images = batch.images + PIXEL_NOISE * torch.randn_like(batch.images)
            loss = functional.cross_entropy(net(images), batch.digits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net


def accuracy(net: torch.nn.Module, digits: Digits) -> float:
    """Share of the digits that `net` recognises. Leaves it in evaluation mode."""
    net.eval()
    with torch.no_grad():
        right: int = (net(digits.images).argmax(1) == digits.digits).sum().item()
    return right / len(digits)


def export(net: DigitNet, path: Path) -> None:
    """Write `net` as an exported program whose batch may have any size."""
    example = torch.zeros(8, 1, 32, 32)
    program = torch.export.export(net.train(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    program._example_inputs = None  # they would be pickled into the file, and nobody needs them
    torch.export.save(program, path)


def write_sample(digits: Digits, path: Path) -> None:
    """Write one batch of the device's data as memfit reads it."""
    save_file({"inputs.0": digits.images, "targets": digits.digits}, path)
