"""The stages of a job that open uploaded files. They run in a child process made for one stage (`service.child`), never in the server."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

import memfit
from planner import profiling, verification
from planner.capture import TrainingGraph, capture, operation_counts
from planner.errors import BadModel
from planner.patching import recipe_of
from planner.plan import Plan, Proof
from planner.profile import Profile
from planner.request import ProfileSettings
from service.summary import ModelInput, ModelParameter, ModelSummary

Progress = Callable[[float, str], None]


def inspect_model(model: Path) -> ModelSummary:
    """Open a model that was written anew, and see that it can be planned.

    Raises:
        BadModel: it cannot be.
    """
    graph = _open(model, ProfileSettings())
    return ModelSummary(
        tuple(ModelInput(**asdict(each)) for each in graph.inputs),
        graph.outputs,
        tuple(ModelParameter(name, tuple(p.shape), p.nbytes) for name, p in graph.module.named_parameters()),
        sum(buffer.nbytes for buffer in graph.module.buffers()),
        operation_counts(graph),
    )


def make_profile(model: Path, sample: Path, settings: ProfileSettings, progress: Progress) -> Profile:
    """Measure a model on a sample."""
    progress(0.0, "opening the model")
    profile = profiling.make_profile(_open(model, settings), load_file(sample), settings, progress)
    return replace(profile, runtime_bytes=verification.runtime_bytes(model))


def prove_plan(model: Path, sample: Path, profile: Profile, plan: Plan, out: Path, progress: Progress) -> Proof:
    """Write the patched checkpoint to `out` and measure its step."""
    progress(0.0, "writing the checkpoint")
    memfit.save(out, _load(model), recipe_of(profile, plan))
    return verification.prove(model, out, sample, profile, plan, progress)


def _open(model: Path, settings: ProfileSettings) -> TrainingGraph:
    return capture(_load(model), settings.batch_norm)


def _load(model: Path) -> torch.export.ExportedProgram:
    try:
        return torch.export.load(model)
    except Exception as error:  # torch raises whatever its parsers meet in a file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BadModel(
            f"torch.export.load cannot read the model: {reason}. Save it anew with torch.export.save and torch {torch.__version__}."
        ) from error
