"""Results written over what is read last: values and gradients in float64 against torch's, and which operations may."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from memfit.operators.norm import frozen_batch_norm
from memfit.overwriting import IN_PLACE
from memfit.recipe import RECOMPUTE, HeldForm
from planner.capture import TrainingGraph, capture_module
from planner.record import record
from tests.memfit.test_operators import random, relative_error

F = torch.nn.functional
CLOSE = 1e-10


@given(spatial=st.lists(st.integers(1, 4), max_size=3), affine=st.booleans(), over_gradient=st.booleans(), last=st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_frozen_norm_over_its_input(spatial: list[int], affine: bool, over_gradient: bool, last: bool) -> None:
    shape = (3, 5, *spatial)
    x, mean, variance = random(shape, 0).requires_grad_(), random((5,), 1), random((5,), 2).abs() + 0.5
    weight, bias = (random((5,), 3), random((5,), 4).requires_grad_()) if affine else (None, None)  # nothing holds the input
    before = (x * 1).contiguous(memory_format=torch.channels_last) if last and len(spatial) == 2 else x * 1
    result = frozen_batch_norm(before, weight, bias, mean, variance, 1e-3, None, True, over_gradient)
    truth = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, 1e-3)
    assert result.data_ptr() == before.data_ptr()
    assert relative_error(result, truth) <= CLOSE
    grad, wanted = random(shape, 5), [x] if bias is None else [x, bias]
    true_grads = torch.autograd.grad(truth, wanted, grad)
    for ours, true_grad in zip(torch.autograd.grad(result, wanted, grad), true_grads, strict=True):
        assert relative_error(ours, true_grad) <= CLOSE


class Chained(nn.Module):
    """Norms, rectifiers, activation functions and sums, some of which read what others read too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.line = nn.Conv1d(6, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(2))
        self.up, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu6(self.norms[0](self.first(image)))
        y = self.norms[1](self.second(x))
        x = F.leaky_relu(y + x, 0.1)
        z = self.line(x.flatten(2))  # a view of it
        z = F.silu(z) + z  # which both read
        z = F.relu(z) * x.flatten(2)
        z = F.hardtanh(z.transpose(1, 2).contiguous())
        result: Tensor = self.head(F.gelu(self.up(z)).mean(1))
        return result


def chained() -> tuple[TrainingGraph, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Chained().double()
    for norm in model.norms:
        norm.running_mean, norm.running_var = random((6,), 1) * 0.1, random((6,), 2).abs() + 0.5
    image = random((5, 3, 6, 7), 3)
    return capture_module(model.train(), (image,)), image, torch.tensor([0, 1, 2, 3, 0])


def test_only_what_nobody_reads_later_may_be_overwritten() -> None:
    graph, _, _ = chained()
    pairs = {name: x.name for name, x in graph.overwritable.items()}
    assert pairs == {
        "batch_norm": "conv2d",
        "relu6": "batch_norm",
        "batch_norm_1": "conv2d_1",
        "add": "batch_norm_1",
        "leaky_relu": "add",
        "add_1": "silu",  # silu itself may not: its input is read once more
        "relu": "add_1",
        "gelu": "linear",
    }  # nor hardtanh: what it reads may be a view


def test_gradients_with_every_overwriting_that_is_allowed() -> None:
    graph, image, targets = chained()
    truth_model = graph.module
    F.cross_entropy(truth_model(image), targets).backward()
    truth = {name: p.grad.clone() for name, p in truth_model.named_parameters() if p.grad is not None}
    truth_model.zero_grad()
    forms = (
        HeldForm("conv2d", ("batch_norm",), RECOMPUTE, {"sources": ("image",)}),
        HeldForm("linear", ("gelu",), RECOMPUTE, {"sources": ("hardtanh",)}),
    )
    in_place = tuple(name for name in graph.overwritable if name != "batch_norm_1")  # which holds its input
    recipe = dataclasses.replace(graph.exact_recipe("cross_entropy"), forms=forms, in_place=in_place)
    model = graph.rewritten(recipe)
    before = image.clone()
    F.cross_entropy(model(image), targets).backward()
    assert torch.equal(image, before)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and relative_error(parameter.grad, truth[name]) <= CLOSE, name
    with pytest.raises(ValueError, match="cannot hold whole"):
        graph.rewritten(dataclasses.replace(recipe, in_place=("batch_norm_1",)))(image)
    with pytest.raises(ValueError, match="cannot hold whole"):
        graph.rewritten(dataclasses.replace(recipe, forms=(), masks=("gelu",), in_place=("gelu",)))(image)
    with pytest.raises(ValueError, match="which others need"):
        graph.rewritten(dataclasses.replace(recipe, in_place=("silu",)))


def test_the_peak_is_lower_by_what_is_overwritten() -> None:
    """Frozen, nothing is held: each norm and activation function has one tensor where it had two."""
    torch.manual_seed(0)
    layers = [module for _ in range(2) for module in (nn.BatchNorm2d(8), nn.ReLU6(), nn.SiLU())]
    x = torch.randn(4, 8, 32, 32)
    graph = capture_module(nn.Sequential(nn.AvgPool2d(1), *layers).train(), (x,))  # which takes no more than its result

    def peak(in_place: tuple[str, ...]) -> int:
        model = graph.rewritten(dataclasses.replace(graph.exact_recipe("mse"), trained=(), in_place=in_place))
        return record(lambda: model(x)).peak_bytes

    assert len(graph.overwritable) == 6
    assert 2 * x.nbytes <= peak(())
    assert peak(tuple(graph.overwritable)) == pytest.approx(x.nbytes, rel=0.05)


def test_every_function_of_the_table_is_torchs() -> None:
    for function, in_place in IN_PLACE.items():
        x = random((4, 5), 0)
        arguments = (random((4, 5), 1),) if "add" in str(function) else ()
        truth = function(x, *arguments)
        assert torch.equal(in_place(x, *arguments), truth) and torch.equal(x, truth)
