"""Checkpoints of real networks: what opens them, and what they need for that."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import memfit
from planner.patching import recipe_of
from planner.request import Optimizer
from tests.planner.plans import Case, tight_plan


def test_checkpoints_train_with_torch_and_memfit_alone(case: Case, tmp_path: Path) -> None:
    graph, sample, profile = case
    plan = tight_plan(profile, Optimizer("sgd", 0.9))
    checkpoint, inputs = tmp_path / "net.pt2", tmp_path / "inputs.pt"
    memfit.save(checkpoint, graph.program, recipe_of(profile, plan))
    torch.save(sample, inputs)
    code = f"""
import sys, torch, memfit
model = memfit.load({str(checkpoint)!r})
sample = torch.load({str(inputs)!r}, weights_only=True)
targets = sample.pop("targets", None)
step = memfit.TrainingStep(model, lr=0.05)
first = step(tuple(sample.values()), targets)
for _ in range(20): last = step(tuple(sample.values()), targets)
assert last < first, (first, last)
smaller = tuple(tensor[:3] for tensor in sample.values())
step(smaller, None if targets is None else targets[:3])
model.eval(); model(*smaller); model.train()
loaded = {{m.split(".")[0] for m in sys.modules}} & {{"planner", "service", "models", "scipy", "pydantic", "safetensors"}}
print(first, last, loaded or "alone")
"""
    output = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True)
    assert output.split()[-1] == "alone"


def test_plain_torch_opens_a_checkpoint_and_the_original_takes_its_weights(case: Case, tmp_path: Path) -> None:
    graph, _, profile = case
    path = tmp_path / "net.pt2"
    memfit.save(path, graph.program, recipe_of(profile, tight_plan(profile)))
    program = torch.export.load(path)
    assert program.state_dict.keys() == graph.program.state_dict.keys()
    assert memfit.load(path).state_dict().keys() == program.state_dict.keys()
    torch.export.save(graph.program, tmp_path / "plain.pt2")
    with pytest.raises(ValueError, match="holds no plan"):
        memfit.load(tmp_path / "plain.pt2")
