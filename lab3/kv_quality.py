"""What a quantized KV cache costs a model: its perplexity through LMDeploy's format, and whose keys suffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lab3.cpu import kv_quant
from lab3.perplexity import measure
from lab3.progress import Progress, silent

_ATTENTION = "lab3_quantized_kv_cache"


@dataclass(frozen=True)
class KVQuality:
    """The cost of a KV cache of `bits` bits.

    `key_errors`: for each layer, how far quantized keys move the attention logits, as a share of those logits' own
    spread over the tokens attended to (root mean squares; a shift that all of them share leaves attention as it is and
    does not count). Near 1 a layer attends to noise.
    """

    bits: int
    perplexity: float
    key_errors: tuple[float, ...]


def kv_quality(
    network: Any, sequences: Sequence[Sequence[int]], *, bits: int, progress: Progress = silent
) -> KVQuality:
    """Measure `network` as `lab3.perplexity.measure` does, its keys and values quantized to `bits`; so they stay.

    Raises UsageError when there is nothing to score.
    """
    errors = _Errors(network.config.num_hidden_layers)
    quantize_cache(network, bits, errors)
    found = measure(network, sequences, progress=progress)
    return KVQuality(bits, found, errors.shares())


def quantize_cache(network: Any, bits: int, errors: _Errors | None = None) -> None:
    """Make `network` (transformers) attend to keys and values that went through a cache of `bits` bits."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        stored_key, stored_value = through_cache(torch.stack([key, value]), bits)
        if errors is not None:
            errors.add(module.layer_idx, query, key, stored_key)
        out = F.scaled_dot_product_attention(
            query, stored_key, stored_value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(_ATTENTION, attention)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    network.set_attn_implementation(_ATTENTION)


def through_cache(values: Tensor, bits: int) -> Tensor:
    """`values` [..., head_dim] as LMDeploy's cache of `bits` bits gives them back."""
    packed, scales_zeros = kv_quant.quantize(values, bits=bits, stored_dtype=torch.float16)
    return kv_quant.dequantize(packed, scales_zeros, bits=bits, dtype=values.dtype)


class _Errors:
    """Sums of squares of attention logits and of what quantized keys add to them, for each layer."""

    def __init__(self, layers: int) -> None:
        self._spread, self._error = [0.0] * layers, [0.0] * layers

    def add(self, layer: int, query: Tensor, key: Tensor, stored: Tensor) -> None:
        """Query [1, heads, T, head_dim], key and stored key [1, KV heads, T, head_dim]."""
        groups = query[0].float().view(key.size(1), -1, *query.shape[2:])
        past = torch.ones(key.size(2), key.size(2), dtype=torch.bool, device=key.device).tril()
        for sums, keys in ((self._spread, key[0].float()), (self._error, (stored - key)[0].float())):
            logits = torch.einsum("kgtd,ksd->kgts", groups, keys) * past
            mean = logits.sum(-1, keepdim=True) / past.sum(-1, keepdim=True)
            sums[layer] += float(((logits - mean) * past).square().sum())

    def shares(self) -> tuple[float, ...]:
        sums = zip(self._error, self._spread, strict=True)
        return tuple((error / spread) ** 0.5 if spread else 0.0 for error, spread in sums)
