"""What an option loses, as the profile measures it, against the weight gradients of restored activations in float64."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from memfit.forms import Int4, Subspace
from planner.capture import capture_module
from planner.fidelity import COMBINATIONS, measure_energies
from planner.sample import Batch
from planner.techniques import candidate

OUTPUTS = {"few": COMBINATIONS, "many": 8 * COMBINATIONS}


class Net(nn.Module):
    def __init__(self, linear: bool, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(12, 24) if linear else nn.Conv2d(3, 24, 3, padding=1)
        self.second = nn.Linear(24, outputs) if linear else nn.Conv2d(24, outputs, 3, stride=2)
        self.head = nn.Linear(outputs, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(functional.silu(self.first(x)))
        return self.head(functional.silu(y).flatten(2).mean(2) if y.dim() == 4 else functional.silu(y).mean(1))


class Normed(nn.Module):
    def __init__(self, outputs: int, groups: int) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 16, 3), nn.Conv2d(16, outputs, 3, groups=groups), nn.BatchNorm2d(outputs)
        self.head = nn.Linear(outputs, 5)
        self.norm.running_var.uniform_(0.5, 2.0)
        nn.init.uniform_(self.norm.weight, -1.0, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(functional.silu(self.first(x)))

    def after(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(functional.silu(self.norm(self.second(hidden))).flatten(2).mean(2))


@pytest.mark.parametrize(("outputs", "groups"), [(COMBINATIONS, 1), (8 * COMBINATIONS, 1), (8 * COMBINATIONS, 16)])
def test_the_energy_a_folded_norm_loses(outputs: int, groups: int) -> None:
    """Of few channels, or depthwise ones, exactly; of many from some that are drawn."""
    torch.manual_seed(0)
    net = Normed(outputs, groups).eval()
    x, classes, form = torch.randn(8, 3, 12, 12), torch.randint(5, (8,)), Int4()
    graph = capture_module(net, (x,))
    (value,) = (node.name for node in graph.operations if "silu" in node.name and node.args[0] is graph.operations[0])
    hidden = functional.silu(net.first(x)).detach()
    of_form = {value: [candidate(form, tuple(hidden.shape), 4)]}
    measured = measure_energies(graph, [Batch((x,), classes)], "cross_entropy", of_form, lambda done: None)
    (ours,) = measured.candidates[value][0].folded_energy["norm.weight"]

    exact, restored = net.double(), form.restore(form.compress(hidden), hidden.shape, 0, 8).double()
    normed = exact.norm(exact.second(hidden.double())).detach().requires_grad_()
    functional.cross_entropy(exact.head(functional.silu(normed).flatten(2).mean(2)), classes).backward()
    assert normed.grad is not None
    scale = (exact.norm.running_var + exact.norm.eps).rsqrt()
    error = exact.second(restored) - exact.second(hidden.double())
    truth = float(((normed.grad * error).sum((0, 2, 3)) * scale).square().sum().detach())
    assert truth > 0 and ours == pytest.approx(truth, rel=1e-3 if outputs < 4 * COMBINATIONS or groups > 1 else 0.6)


@pytest.mark.parametrize("outputs", OUTPUTS.values(), ids=OUTPUTS.keys())
@pytest.mark.parametrize("linear", [False, True])
def test_the_energy_an_option_loses(linear: bool, outputs: int) -> None:
    """Of few outputs exactly; of many from random combinations of them, within a few of the estimate's deviations."""
    torch.manual_seed(0)
    net = Net(linear, outputs)
    x, classes = torch.randn(8, 10, 12) if linear else torch.randn(8, 3, 12, 12), torch.randint(5, (8,))
    graph = capture_module(net, (x,))
    values = {node.name: node for node in graph.operations}
    value = next(name for name in values if "silu" in name)
    hidden = functional.silu(net.first(x))
    form = Int4()
    measured = measure_energies(
        graph, [Batch((x,), classes)], "cross_entropy", {value: [candidate(form, tuple(hidden.shape), 4)]}, lambda done: None
    )
    ours = measured.candidates[value][0].lost_energy["second.weight"][0]

    restored = form.restore(form.compress(hidden.detach()), hidden.shape, 0, 8).double()
    exact = net.double()
    gradients = []
    for each in (functional.silu(exact.first(x.double())).detach(), restored):
        exact.zero_grad()
        whole = functional.silu(exact.first(x.double())).detach()
        y = exact.second(whole) + (exact.second(each) - exact.second(each).detach()) - (exact.second(whole) - exact.second(whole).detach())
        logits = exact.head(functional.silu(y).flatten(2).mean(2) if y.dim() == 4 else functional.silu(y).mean(1))
        functional.cross_entropy(logits, classes).backward()
        weight = exact.second.weight.grad
        assert isinstance(weight, torch.Tensor)
        gradients.append(weight.clone())
    truth = float((gradients[0] - gradients[1]).square().sum())
    # Σ over 16 signs of an error whose energy is spread over r directions: relative deviation √(2 / 16 r), here of r about 5.
    assert ours == pytest.approx(truth, rel=1e-3 if outputs < 4 * COMBINATIONS else 0.4)
    assert truth > 0 and measured.gradient["second.weight"][0] == pytest.approx(float(gradients[0].square().sum()), rel=1e-4)


def test_directions_refreshed_every_few_passes_lose_between_those_of_each_pass() -> None:
    torch.manual_seed(0)
    net = Net(True, 4)
    x, classes = torch.randn(8, 10, 12), torch.randint(5, (8,))
    graph = capture_module(net, (x,))
    value = next(node.name for node in graph.operations if "silu" in node.name)
    always = Subspace((10, 24), (10, 5), torch.linalg.qr(torch.randn(24, 5))[0].flatten())
    forms = replace(always, every=4), always, always.between
    candidates = [candidate(form, (8, 10, 24), 4) for form in forms]
    measured = measure_energies(graph, [Batch((x,), classes)], "cross_entropy", {value: candidates}, lambda done: None)
    mixed, refreshed, shipped = (each.lost_energy["second.weight"][0] for each in measured.candidates[value])
    assert refreshed < shipped
    assert mixed == pytest.approx(refreshed / 4 + 3 * shipped / 4)
