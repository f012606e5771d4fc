"""Paged attention on the CPU: write new keys and values to LMDeploy's blocks, gather them back, attend in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lmdeploy.messages import QuantPolicy
from lmdeploy.pytorch.backends.attention import AttentionImpl, AttentionMetadata, PagedAttentionBuildSpec
from torch import Tensor

from lab3.cpu import kv_quant

_BITS = {QuantPolicy.INT4: 4, QuantPolicy.INT8: 8}


@dataclass
class CpuAttentionMetadata(AttentionMetadata):  # type: ignore[misc]
    """LMDeploy's metadata of a step, with what every layer needs from it computed once.

    B sequences with T new tokens in all.
    """

    fill_block: Tensor | None = None  # [T] block that each new token's key and value go to
    fill_offset: Tensor | None = None  # [T] place within that block
    query_lengths: tuple[int, ...] = ()  # [B] new tokens
    kv_lengths: tuple[int, ...] = ()  # [B] tokens in the cache, the new ones included


def build_metadata(step: Any) -> CpuAttentionMetadata:
    """Metadata of LMDeploy's `StepContext` `step`."""
    block_offsets = step.block_offsets.long()
    q_seqlens, kv_seqlens = step.q_seqlens.long(), step.kv_seqlens.long()
    sequence = torch.repeat_interleave(torch.arange(len(q_seqlens)), q_seqlens)
    first_new = torch.cumsum(q_seqlens, 0) - q_seqlens
    position = torch.arange(len(sequence)) - first_new[sequence] + (kv_seqlens - q_seqlens)[sequence]
    block_size = step.cache_config.kernel_block_size
    query_lengths, kv_lengths = tuple(q_seqlens.tolist()), tuple(kv_seqlens.tolist())
    return CpuAttentionMetadata(
        is_decoding=step.is_decoding,
        block_offsets=block_offsets,
        q_start_loc=step.q_start_loc,
        q_seqlens=q_seqlens,
        kv_seqlens=kv_seqlens,
        quant_policy=step.kv_quant_policy,
        fill_block=block_offsets[sequence, position // block_size],
        fill_offset=position % block_size,
        query_lengths=query_lengths,
        kv_lengths=kv_lengths,
    )


def build_attention(spec: PagedAttentionBuildSpec) -> CpuAttention:
    """The operator for `spec`.

    Raises:
        NotImplementedError: the model wants a kind of attention that this device does not have.
    """
    unsupported = {
        "ALiBi": spec.alibi,
        "a sliding window": spec.sliding_window not in (None, -1, (-1, -1)),
        "logit soft-capping": bool(spec.logit_softcapping and spec.logit_softcapping > 0),
        "bidirectional attention": not spec.causal,
        "multi-head latent attention": spec.use_flash_mla or spec.mla_index_topk is not None,
        "attention sinks": spec.learnable_sink,
    }
    wanted = [name for name, present in unsupported.items() if present]
    if wanted:
        raise NotImplementedError(
            f"lab3's CPU device has no {' or '.join(wanted)}; it serves dense decoders of the Llama, InternLM2 and "
            "Qwen2 layouts. Serve this model on a GPU."
        )
    return CpuAttention(
        num_heads=spec.num_heads,
        head_size=spec.head_dim,
        scale=spec.scale,
        num_kv_heads=spec.num_kv_heads,
        v_head_size=spec.v_head_dim,
    )


class CpuAttention(AttentionImpl):  # type: ignore[misc]
    """Causal attention with grouped queries (GQA) over a paged cache in 16/32-bit, int8 or int4."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        attn_metadata: CpuAttentionMetadata,
        k_scales_zeros: Tensor | None = None,
        v_scales_zeros: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Attention of `query` [T, heads, head_dim] over the cache, after `key` and `value` [T, kv_heads, head_dim]
        were written to it. Caches are [blocks, block_size, kv_heads, head_dim (half for int4)]."""
        meta = attn_metadata
        _fill(k_cache, k_scales_zeros, key, meta)
        _fill(v_cache, v_scales_zeros, value, meta)
        outputs = []
        for index, (q, kv_length) in enumerate(zip(query.split(meta.query_lengths), meta.kv_lengths, strict=True)):
            blocks = meta.block_offsets[index, : -(-kv_length // k_cache.size(1))]
            keys = _gather(k_cache, k_scales_zeros, blocks, kv_length, meta)
            values = _gather(v_cache, v_scales_zeros, blocks, kv_length, meta)
            outputs.append(self._attend(q.float(), keys, values))
        return torch.cat(outputs).to(query.dtype)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One sequence: query [n, heads, dim], keys and values [kv_heads, length, dim] → [n, heads, dim].

        A single query needs no mask: the queries of a group stand where SDPA has query positions. A chunk that is not a
        prompt's first sees all earlier tokens through the cache.
        """
        new, length = len(query), keys.size(1)
        if new == 1:
            grouped = query.view(1, self.num_kv_heads, -1, query.size(-1))
            out = F.scaled_dot_product_attention(grouped, keys[None], values[None], scale=self.scale)
            return out.view(1, self.num_heads, -1)
        mask = None if new == length else torch.ones(new, length, dtype=torch.bool).tril(length - new)
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        return out[0].transpose(0, 1)


def _fill(cache: Tensor, scales_zeros: Tensor | None, new: Tensor, meta: CpuAttentionMetadata) -> None:
    """Write `new` [T, kv_heads, head_dim] to its places in `cache`, quantized as the policy says."""
    if scales_zeros is None:
        cache[meta.fill_block, meta.fill_offset] = new.to(cache.dtype)
        return
    packed, sz = kv_quant.quantize(new, bits=_BITS[meta.quant_policy], stored_dtype=scales_zeros.dtype)
    cache[meta.fill_block, meta.fill_offset] = packed
    scales_zeros[meta.fill_block, meta.fill_offset] = sz


def _gather(
    cache: Tensor, scales_zeros: Tensor | None, blocks: Tensor, length: int, meta: CpuAttentionMetadata
) -> Tensor:
    """The first `length` tokens of the sequence in `blocks` [n]: fp32 [kv_heads, length, head_dim]."""
    tokens = cache[blocks].flatten(0, 1)[:length]
    if scales_zeros is None:
        return tokens.float().transpose(0, 1)
    sz = scales_zeros[blocks].flatten(0, 1)[:length]
    bits = _BITS[meta.quant_policy]
    return kv_quant.dequantize(tokens, sz, bits=bits, dtype=torch.float32).transpose(0, 1)
