"""Paged attention on the CPU: write new keys and values to LMDeploy's blocks, gather them back, attend in fp32."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from lmdeploy.messages import QuantPolicy
from lmdeploy.pytorch.backends.attention import AttentionImpl, AttentionMetadata, PagedAttentionBuildSpec
from torch import Tensor

from lab3.cpu import cores, kv_quant

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
    # [n] blocks that hold a token, a sequence's one after the other
    used_blocks: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))


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
        used_blocks=torch.cat(
            [blocks[: -(-length // block_size)] for blocks, length in zip(block_offsets, kv_lengths, strict=True)]
        ),
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
        _fill((k_cache, v_cache), (k_scales_zeros, v_scales_zeros), (key, value), meta)
        keys, values = _gather((k_cache, v_cache), (k_scales_zeros, v_scales_zeros), meta)
        outputs, first = [], 0
        query = query.float() if query.dtype != torch.float32 else query
        for q, kv_length in zip(query.split(meta.query_lengths), meta.kv_lengths, strict=True):
            own = slice(first, first + kv_length)
            outputs.append(self._attend(q, keys[own].transpose(0, 1), values[own].transpose(0, 1)))
            first += -(-kv_length // k_cache.size(1)) * k_cache.size(1)
        cores.take(0)
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return out.to(key.dtype)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One sequence: query [n, heads, dim], keys and values [kv_heads, length, dim] → [n, heads, dim].

        A single query needs no mask: the queries of a group stand where SDPA has query positions. A chunk that is not a
        prompt's first sees all earlier tokens through the cache.
        """
        new, length = len(query), keys.size(1)
        cores.take(2 * new * length * self.num_heads * query.size(-1))
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


Pair = tuple[Tensor, Tensor]  # of keys and of values


def _fill(
    caches: Pair, scales_zeros: tuple[Tensor | None, Tensor | None], new: Pair, meta: CpuAttentionMetadata
) -> None:
    """Write `new` [T, kv_heads, head_dim] to its places in the caches, quantized as the policy says."""
    places = (meta.fill_block, meta.fill_offset)
    if scales_zeros[0] is None or scales_zeros[1] is None:
        for cache, each in zip(caches, new, strict=True):
            cache.index_put_(places, each.to(cache.dtype))
        return
    bits, stored = _BITS[meta.quant_policy], scales_zeros[0].dtype
    # Keys and values are often as wide as each other, and then quantized in one go: small operators cost as much.
    if new[0].shape == new[1].shape:
        packed, sz = kv_quant.quantize(torch.stack(new), bits=bits, stored_dtype=stored)
        written = tuple(zip(packed, sz, strict=True))
    else:
        written = tuple(kv_quant.quantize(each, bits=bits, stored_dtype=stored) for each in new)
    for cache, target, (codes, sz) in zip(caches, scales_zeros, written, strict=True):
        cache.index_put_(places, codes)
        target.index_put_(places, sz)  # type: ignore[union-attr]


def _gather(caches: Pair, scales_zeros: tuple[Tensor | None, Tensor | None], meta: CpuAttentionMetadata) -> Pair:
    """All tokens of all blocks in use, a sequence's one after the other: fp32 [tokens, kv_heads, head_dim] each."""
    tokens = [cache.index_select(0, meta.used_blocks).flatten(0, 1) for cache in caches]
    if scales_zeros[0] is None or scales_zeros[1] is None:
        return tokens[0].float(), tokens[1].float()
    bits = _BITS[meta.quant_policy]
    sz = [each.index_select(0, meta.used_blocks).flatten(0, 1) for each in scales_zeros if each is not None]
    keys, values = (
        kv_quant.dequantize(codes, own, bits=bits, dtype=torch.float32) for codes, own in zip(tokens, sz, strict=True)
    )
    return keys, values
