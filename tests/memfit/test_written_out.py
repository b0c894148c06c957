"""Linear layers and activation functions that a program writes out in several operations, against the program itself, in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from memfit.operators.linear import TRANSPOSED_LINEAR
from memfit.program import training_module

aten = torch.ops.aten
CLOSE = 1e-10

FUNCTIONS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "gelu by tanh and a power": (
        aten.gelu.default,
        lambda x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
    ),
    "gelu by tanh and products": (
        aten.gelu.default,
        lambda x: x * 0.5 * (1.0 + torch.tanh(x * 0.7978845608028654 * (1.0 + 0.044715 * x * x))),
    ),
    "gelu by erf": (aten.gelu.default, lambda x: x * (torch.erf(x / math.sqrt(2.0)) + 1.0) / 2),
    "silu": (aten.silu.default, lambda x: x * torch.sigmoid(x)),
    "silu by exp": (aten.silu.default, lambda x: x / (1 + torch.exp(-x))),
    "mish": (aten.mish.default, lambda x: x * torch.tanh(F.softplus(x))),
    "hardswish": (aten.hardswish.default, lambda x: x * F.relu6(x + 3) / 6),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "a steeper silu": lambda x: x * torch.sigmoid(1.702 * x),
    "a gate": lambda x: x * torch.sigmoid(x.flip(-1)),
    "nearly silu": lambda x: x * torch.sigmoid(x * (1 + 1e-6)),
    "a square": lambda x: x * x,
}


class Applying(nn.Module):
    """The function of a layer's result, of which the sum is read as well."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(4, 6, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.function(y) + y.sum(-1, keepdim=True)


class Layered(nn.Module):
    """Matrix products with parameters, by rows or columns, with and without bias, of flattened axes or not."""

    def __init__(self, kinds: list[str], between: tuple[int, ...], bias: bool, scaled: bool) -> None:
        super().__init__()
        self.kinds, self.between, self.scaled = kinds, between, scaled
        self.weights = nn.ParameterList(torch.randn(4, 4, dtype=torch.float64) for _ in kinds)
        self.biases = nn.ParameterList(torch.randn(4, dtype=torch.float64) if bias else torch.zeros(0) for _ in kinds)

    def forward(self, x: Tensor) -> Tensor:
        for kind, weight, bias in zip(self.kinds, self.weights, self.biases, strict=True):
            matrix = {"columns": weight, "t": weight.t(), "transpose": weight.transpose(0, 1), "permute": weight.permute(1, 0)}[kind]
            flat = x.view(-1, 4) if self.between else x
            product = torch.addmm(bias, flat, matrix, alpha=2 if self.scaled else 1) if len(bias) else torch.mm(flat, matrix)
            x = torch.tanh(product.view(x.shape) if self.between else product)
        return x


def compare(model: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    """The training module of an exported model, whose output and gradients are the model's."""
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    module = training_module(program, "frozen")
    for batch in (x, x[:2]):
        ours, truth = module(batch), model(batch)
        torch.testing.assert_close(ours, truth, rtol=CLOSE, atol=CLOSE)
        ours.sin().sum().backward()
        truth.sin().sum().backward()
        for (name, parameter), (_, own) in zip(module.named_parameters(), model.named_parameters(), strict=True):
            if own.grad is not None:
                torch.testing.assert_close(parameter.grad, own.grad, rtol=CLOSE, atol=CLOSE, msg=name)
        module.zero_grad()
        model.zero_grad()
    return module


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_written_out_is_that_function(name: str) -> None:
    target, function = FUNCTIONS[name]
    module = compare(Applying(function), 3 * torch.randn(5, 4, dtype=torch.float64))
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert targets.count(target) == 1
    assert set(targets) <= {target, aten.linear.default, aten.sum.dim_IntList, aten.add.Tensor}


@pytest.mark.parametrize("name", OTHERS)
def test_another_function_stays_as_it_is(name: str) -> None:
    module = compare(Applying(OTHERS[name]), 3 * torch.randn(5, 4, dtype=torch.float64))
    targets = {node.target for node in module.graph.nodes}
    assert aten.mul.Tensor in targets
    assert not targets & {target for target, _ in FUNCTIONS.values()}


@given(
    kinds=st.lists(st.sampled_from(["columns", "t", "transpose", "permute"]), min_size=1, max_size=3),
    between=st.lists(st.integers(2, 3), max_size=2),
    bias=st.booleans(),
)
@settings(deadline=None, max_examples=25)
def test_products_with_parameters_are_linear_layers(kinds: list[str], between: list[int], bias: bool) -> None:
    module = compare(Layered(kinds, tuple(between), bias, False), torch.randn(5, *between, 4, dtype=torch.float64))
    layers = [node for node in module.graph.nodes if node.target in (TRANSPOSED_LINEAR, aten.linear.default)]
    assert [node.target is TRANSPOSED_LINEAR for node in layers] == [kind == "columns" for kind in kinds]
    for layer in layers:
        assert len(layer.args[0].meta["val"].shape) == len(layer.meta["val"].shape) == 2 + len(between)
        assert layer.args[1].op == "get_attr"


def test_a_scaled_product_stays_one() -> None:
    module = compare(Layered(["columns"], (), True, True), torch.randn(5, 4, dtype=torch.float64))
    assert aten.addmm.default in {node.target for node in module.graph.nodes}
