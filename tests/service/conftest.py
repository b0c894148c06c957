"""A small real model and sample, and the real service on a port of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.service.running import Running, running
from tests.service.small_model import BATCH, SmallNet, export


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return export(SmallNet(), torch.randn(BATCH, 3, 16, 16), to=tmp_path_factory.mktemp("model") / "small.pt2")


@pytest.fixture(scope="session")
def sample_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("sample") / "sample.safetensors"
    save_file({"inputs.0": torch.randn(BATCH, 3, 16, 16), "targets": torch.randint(0, 10, (BATCH,))}, path)
    return path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("data")) as service:
        yield service
