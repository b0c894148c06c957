"""Plans of real networks, and what is asked of them."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import memfit
from memfit.losses import loss_of
from planner.capture import TrainingGraph
from planner.errors import InfeasibleBudget
from planner.patching import recipe_of
from planner.plan import Plan, Proof
from planner.profile import Profile
from planner.request import Budget, Optimizer, PlanRequest
from planner.solver import plain_peak_bytes, solve
from planner.verification import prove

NAMES = ("convolutional", "attending", "gated", "unet")
LOSSY = ("mask", "svd", "hosvd")
CHECKPOINT = "checkpoint.pt2"
WITHOUT_STATE = Optimizer()
Case = tuple[TrainingGraph, dict[str, Tensor], Profile]


def request(share: float, **rest: object) -> PlanRequest:
    return PlanRequest(Budget(share=share), **rest)  # type: ignore[arg-type]


def gradients(model: nn.Module, sample: dict[str, Tensor], loss: str) -> dict[str, Tensor]:
    torch.manual_seed(3)
    targets = sample.get("targets")
    inputs = [tensor for name, tensor in sample.items() if name != "targets"]
    model.zero_grad()
    loss_of(loss, model(*inputs), targets).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def tight_plan(profile: Profile, optimizer: Optimizer = WITHOUT_STATE, techniques: tuple[str, ...] = LOSSY) -> Plan:
    """A plan with little more room than the least, but in which much still trains."""
    try:
        solve(profile, PlanRequest(Budget(amount_bytes=profile.static_bytes // 2), optimizer, techniques=techniques))
    except InfeasibleBudget as error:
        least = error.least_budget_bytes
    room = (plain_peak_bytes(profile, optimizer) - least) // (2 if techniques == LOSSY else 8)
    return solve(profile, PlanRequest(Budget(amount_bytes=least + room), optimizer, techniques=techniques))


def agrees(fidelity: float, plan: Plan, profile: Profile) -> bool:
    """Whether measured fidelity is the predicted; with tied weights, whose loss is an upper limit, at least that."""
    tied = any(sum(p in operation.parameters for operation in profile.whole.operations) > 1 for p in ("head.weight", "tied.weight"))
    return fidelity >= plan.fidelity - 1e-3 and (tied or fidelity <= plan.fidelity + 1e-3)


def proved(graph: TrainingGraph, sample: dict[str, Tensor], profile: Profile, plan: Plan, folder: Path) -> Proof:
    """The plan's proof, in a process of its own, which leaves the checkpoint in the folder."""
    model, checkpoint, file = folder / "model.pt2", folder / CHECKPOINT, folder / "sample.safetensors"
    torch.export.save(graph.program, model)
    save_file(sample, file)
    memfit.save(checkpoint, torch.export.load(model), recipe_of(profile, plan))
    return prove(model, checkpoint, file, profile, plan, lambda fraction, message: None)
