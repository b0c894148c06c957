"""Attention with dropout that holds queries, keys, values and one bit a probability, and works itself out again from these.

Torch holds the probabilities three times: as they are, what was drawn, and their product.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from memfit.bits import pack, unpack
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
        if torch.is_grad_enabled():
            return self._dropped(query, key, value, mask, kept)
        result = query.new_empty((*query.shape[:-1], value.shape[-1]))
        for some in self._ranges(query, key):
            by_samples = self.goes_by_samples(3, (query, key, value, mask, kept))
            part = mask[some] if mask is not None and by_samples else mask
            result[some] = self._dropped(query[some], key[some], value[some], part, kept[some])
        return result

    def _ranges(self, query: Tensor, key: Tensor) -> list[slice]:
        step = samples_at_once(_probabilities(query, key), query.element_size())
        return [slice(start, start + step) for start in range(0, query.shape[0], step)]

    def _dropped(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kept: Tensor) -> Tensor:
        if self.constants["enable_gqa"]:  # as many heads each
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        scale = self.constants["scale"]
        root = (query.shape[-1] ** -0.5 if scale is None else scale) ** 0.5  # half of it each: less overflows
        scores = (query * root) @ (key * root).mT
        if self.constants["is_causal"]:
            mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        probabilities: Tensor = aten._safe_softmax.default(scores, -1)
        del scores
        bits = unpack(kept, prod(probabilities.shape[1:])).view(probabilities.shape)
        return (probabilities * bits).mul_(1 / (1 - self.probability)) @ value

    def widest(self, own: tuple[Tensor | None, ...], result: Tensor) -> tuple[int, ...]:
        query, key, *_ = own
        assert query is not None and key is not None
        return (*result.shape[:-1], max(result.shape[-1], key.shape[-2]))

    def goes_by_samples(self, at: int, own: tuple[Tensor | None, ...]) -> bool:
        return self.tensors[at] == KEPT or super().goes_by_samples(at, own)


def _probabilities(query: Tensor, key: Tensor) -> tuple[int, ...]:
    return (*query.shape[:-1], key.shape[-2])
