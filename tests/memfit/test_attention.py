"""Attention with dropout that holds bits, against torch's own under the same seed, in float64."""

from collections.abc import Iterator
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from memfit.operators import held
from memfit.operators.attention import Attention, DroppedAttention

CLOSE = 1e-10


@pytest.fixture(autouse=True)
def small_ranges() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held, "RESTORE_BYTES", 1000)
        yield


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Tensor], Tensor | None, dict[str, Any]]:
    """Queries, keys and values with axes in any layout; a mask or none; settings of the operation."""
    torch.manual_seed(draw(st.integers(0, 99)))
    samples, groups, repeats = draw(st.integers(1, 5)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    queries, keys, width, out = (draw(st.integers(1, 6)) for _ in range(4))
    causal, masked = draw(st.booleans()), draw(st.sampled_from([None, "bool", "float", "of all samples"]))
    heads = draw(st.booleans())
    shapes = [((groups * repeats,) if heads else (), queries, width), ((groups,) if heads else (), keys, width)]
    shapes.append(((groups,) if heads else (), keys, out))
    tensors = [torch.randn(samples, *head, first, last, dtype=torch.float64) for head, first, last in shapes]
    if draw(st.booleans()):
        tensors = [x.mT.contiguous().mT for x in tensors]
    mask = None
    if masked and not causal:
        mask = torch.randn(samples, *([1] if heads else []), queries, keys, dtype=torch.float64)
        mask = mask > -0.5 if masked == "bool" else mask[0] if masked == "of all samples" else mask
    scale = draw(st.sampled_from([None, 0.3] if causal or mask is not None else [None, 0.3, -0.3]))  # torch's own masks give no number then
    return tensors, mask, {"is_causal": causal, "scale": scale, "enable_gqa": heads and repeats > 1}


@given(case=cases(), probability=st.sampled_from([0.1, 0.5, 0.9]), frozen=st.sets(st.integers(0, 3), max_size=2))
@settings(deadline=None, max_examples=100)
def test_output_and_gradients_are_those_of_the_same_seed(
    case: tuple[list[Tensor], Tensor | None, dict[str, Any]], probability: float, frozen: set[int]
) -> None:
    tensors, mask, values = case
    ours = DroppedAttention(Attention(probability, **values))

    def run(operation: Any) -> list[Tensor]:
        leaves = [x.detach().requires_grad_(at not in frozen) for at, x in enumerate(tensors)]
        leaves += [] if mask is None else [mask.detach().requires_grad_(mask.is_floating_point() and 3 not in frozen)]
        torch.manual_seed(7)
        result = operation(*leaves[:3], None if mask is None else leaves[3])
        further = torch.rand(2)  # as many numbers were drawn
        result.backward(torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view(result.shape))
        return [result.detach(), further, *(x.grad for x in leaves if x.grad is not None)]

    found = run(lambda *x: ours(*x, None, None, None, None))
    truth = run(lambda *x: F.scaled_dot_product_attention(*x, probability, **values))
    assert len(found) == len(truth)
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=CLOSE, atol=CLOSE)
    ours.eval()
    whole = F.scaled_dot_product_attention(*tensors, mask, 0.0, **values)
    torch.testing.assert_close(ours(*tensors, mask, None, None, None, None), whole, rtol=CLOSE, atol=CLOSE)


def test_of_its_own_it_holds_a_bit_a_probability() -> None:
    tensors = [torch.randn(4, 2, 16, 8, requires_grad=True) for _ in range(3)]
    kept: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    operation = DroppedAttention(Attention(0.1, False, None, False))
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        operation(*tensors, None, None, None, None, None)
    assert sum(kept.values()) == sum(x.nbytes for x in tensors) + prod((4, 2, 16, 16)) // 8
