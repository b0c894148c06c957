"""Attention with dropout that holds queries, keys, values and one bit a probability, and works itself out again from these.

Torch holds the probabilities three times: as they are, what was drawn, and their product.
"""

from math import copysign
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from memfit.bits import pack, scale_by_bits
from memfit.operators.again import MASK, Again
from memfit.operators.held import samples_at_once

aten = torch.ops.aten
KEPT = "kept"  # the bits of what is not dropped, a row of bytes a sample


class Attention(nn.Module):
    """Scaled dot-product attention whose dropout follows the training mode, as torch does it."""

    def __init__(self, probability: float, is_causal: bool, scale: float | None, enable_gqa: bool) -> None:
        super().__init__()
        self.probability, self.is_causal, self.scale, self.enable_gqa = probability, is_causal, scale, enable_gqa

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, self.probability * self.training, self.is_causal, scale=self.scale, enable_gqa=self.enable_gqa
        )


class DroppedAttention(Again):
    """The same, with less held; the first axis is that of the samples. Draws the numbers that torch's own draws."""

    def __init__(self, attention: Attention) -> None:
        settings: dict[str, Any] = {name: getattr(attention, name) for name in ("is_causal", "scale", "enable_gqa")}
        super().__init__(aten.scaled_dot_product_attention.default, ("query", "key", "value", MASK, KEPT), 3, settings)
        self.probability = attention.probability

    def forward(self, *values: Any, over_input: bool = False) -> Tensor:
        """Queries (B, ..., T, D), keys (B, ..., S, D), values and the mask; None, in place of the bits that are drawn here; what holds
        the first three.
        """
        query, key, *_ = values
        kept = self._draw(_probabilities(query, key), query.device) if self.training else None
        return super().forward(*values[:4], kept, *values[5:])

    def _draw(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Bits of a probability matrix a sample, (B, bytes)."""
        kept = torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1 - self.probability).flatten(1)
        if past := -kept.shape[1] % 8:
            kept = functional.pad(kept, (0, past))
        return pack(kept).view(shape[0], -1)

    def run(self, tensors: tuple[Tensor | None, ...] | list[Tensor | None], over_input: bool = False) -> Tensor:
        *own, kept = tensors
        if kept is None:
            result: Tensor = self.target(*own, 0.0, **self.constants)
            return result
        query, key, value, mask = own
        assert query is not None and key is not None and value is not None
        result = query.new_empty((*query.shape[:-1], value.shape[-1]))
        by_samples = self.goes_by_samples(3, (query, key, value, mask, kept))
        for some in self._ranges(query, key):
            part = mask[some] if mask is not None and by_samples else mask
            probabilities = self._softmax(query[some], key[some], part)
            result[some] = self._drop(probabilities, kept[some]) @ self._of_every_head(value[some], query)
        return result

    def _ranges(self, query: Tensor, key: Tensor) -> list[slice]:
        step = samples_at_once(_probabilities(query, key), query.element_size())
        return [slice(start, start + step) for start in range(0, query.shape[0], step)]

    def gradients(self, inputs: list[Tensor | None], wanted: tuple[bool, ...], grad: Tensor) -> list[Tensor | None]:
        *own, kept = inputs
        if kept is None:
            return super().gradients(inputs, wanted, grad)
        query, key, value, mask = own
        assert query is not None and key is not None and value is not None
        found: list[Tensor | None] = [None] * len(inputs)
        probabilities = self._softmax(query, key, mask)
        if wanted[2]:
            dropped = self._drop(probabilities.clone(), kept)
            found[2] = self._of_own_heads(dropped.mT @ grad, value)
            del dropped
        if any((*wanted[:2], wanted[3])):
            upstream = self._drop(grad @ self._of_every_head(value, query).mT, kept)
            scores = aten._softmax_backward_data.default(upstream, probabilities, -1, upstream.dtype)
            del upstream
            if wanted[3]:
                assert mask is not None
                found[3] = scores.sum_to_size(mask.shape)
            if wanted[0]:
                found[0] = (scores @ self._of_every_head(key, query)).mul_(self._scale(query))
            if wanted[1]:
                found[1] = self._of_own_heads(scores.mT @ query, key).mul_(self._scale(query))
        return found

    def _softmax(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Probabilities before any is dropped, (B, ..., T, S)."""
        scale = self._scale(query)
        root = abs(scale) ** 0.5  # half of it each: less overflows
        scores = (query * copysign(root, scale)) @ (self._of_every_head(key, query) * root).mT
        if self.constants["is_causal"]:
            mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
        if mask is None:
            return torch.softmax(scores, -1)
        scores = scores.masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else scores.add_(mask)
        result: Tensor = aten._safe_softmax.default(scores, -1)  # zero where a mask leaves nothing
        return result

    def _drop(self, x: Tensor, kept: Tensor) -> Tensor:
        """What dropout makes of a tensor of the probabilities' shape, written over it."""
        for sample, bits in zip(x := x.contiguous(), kept, strict=True):
            scale_by_bits(sample, bits, 1 / (1 - self.probability), 0.0, in_place=True)
        return x

    def _scale(self, query: Tensor) -> float:
        scale: float | None = self.constants["scale"]
        return query.shape[-1] ** -0.5 if scale is None else scale

    def _of_every_head(self, x: Tensor, query: Tensor) -> Tensor:
        """Keys or values, of as many heads as there are queries."""
        return x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) if self.constants["enable_gqa"] else x

    def _of_own_heads(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient of keys or values from that of `_of_every_head`."""
        return grad.unflatten(-3, (x.shape[-3], -1)).sum(-3) if self.constants["enable_gqa"] else grad

    def widest(self, own: tuple[Tensor | None, ...], result: Tensor) -> tuple[int, ...]:
        query, key, *_ = own
        assert query is not None and key is not None
        return (*result.shape[:-1], max(result.shape[-1], key.shape[-2]))

    def goes_by_samples(self, at: int, own: tuple[Tensor | None, ...]) -> bool:
        return self.tensors[at] == KEPT or super().goes_by_samples(at, own)


def _probabilities(query: Tensor, key: Tensor) -> tuple[int, ...]:
    return (*query.shape[:-1], key.shape[-2])
