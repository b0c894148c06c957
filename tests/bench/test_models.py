"""The benchmark's models export with a free batch size, and feed from their samples."""

import zipfile

import pytest
import torch
from safetensors.torch import load_file

from bench import models


@pytest.mark.slow
@pytest.mark.parametrize("name", models.CASES)
def test_an_exported_model_takes_its_sample_in_any_batch_size(name, tmp_path):
    models.export(name, tmp_path / "model.pt2")
    models.write_sample(name, tmp_path / "sample.safetensors", batch=3)
    program = torch.export.load(tmp_path / "model.pt2")
    tensors = load_file(tmp_path / "sample.safetensors")
    named = {key.removeprefix("inputs."): tensor for key, tensor in tensors.items() if key.startswith("inputs.")}
    positional = [named.pop(key) for key in sorted(named) if key.isdigit()]
    with torch.no_grad():
        output = program.module(check_guards=False)(*positional, **named)
    logits = output["logits"] if isinstance(output, dict) else output
    assert logits.shape[0] == 3
    assert torch.isfinite(logits).all()


def test_a_written_model_holds_no_pickle(tmp_path):
    models.export("resnet_18", tmp_path / "model.pt2", batch=2)
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        pickled = [name for name in archive.namelist() if name.endswith((".pkl", ".pt")) and archive.getinfo(name).file_size]
    assert pickled == []


def test_weights_and_samples_are_the_same_every_time():
    first, second = models.build("resnet_18"), models.build("resnet_18")
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert all(torch.equal(a, models.sample("bert_4")[name]) for name, a in models.sample("bert_4").items())


def test_images_have_the_falling_spectrum_of_photographs():
    image = models.sample("resnet_18")["inputs.0"][0, 0]
    energy = torch.fft.rfft2(image).abs().square()
    low, high = energy[:8, :8].mean(), energy[64:112, 64:].mean()
    assert low > 100 * high
