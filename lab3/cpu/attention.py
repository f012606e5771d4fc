"""Paged attention on the CPU: write new keys and values to LMDeploy's blocks, read them there, attend in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lmdeploy.pytorch.backends.attention import AttentionImpl, AttentionMetadata, PagedAttentionBuildSpec
from torch import Tensor

from lab3.cpu import cores, kernels
from lab3.cpu.compiled import stored
from lab3.cpu.graph import decoding
from lab3.cpu.replay import ATTEND


@dataclass
class CpuAttentionMetadata(AttentionMetadata):  # type: ignore[misc]
    """LMDeploy's metadata of a step, with what every layer needs from it computed once.

    B sequences with T new tokens in all.
    """

    fill_block: Any = None  # int64 [T] block that each new token's key and value go to
    fill_offset: Any = None  # int64 [T] place within that block
    query_lengths: tuple[int, ...] = ()  # [B] new tokens
    kv_lengths: tuple[int, ...] = ()  # [B] tokens in the cache, the new ones included
    blocks: Any = None  # int64 [B, most blocks of a sequence]


def build_metadata(step: Any) -> CpuAttentionMetadata:
    """Metadata of LMDeploy's `StepContext` `step`."""
    block_offsets = step.block_offsets.long()
    q_seqlens, kv_seqlens = step.q_seqlens.long(), step.kv_seqlens.long()
    sequence = torch.repeat_interleave(torch.arange(len(q_seqlens)), q_seqlens)
    first_new = torch.cumsum(q_seqlens, 0) - q_seqlens
    position = torch.arange(len(sequence)) - first_new[sequence] + (kv_seqlens - q_seqlens)[sequence]
    block_size = step.cache_config.kernel_block_size
    return CpuAttentionMetadata(
        is_decoding=step.is_decoding,
        block_offsets=block_offsets,
        q_start_loc=step.q_start_loc,
        q_seqlens=q_seqlens,
        kv_seqlens=kv_seqlens,
        quant_policy=step.kv_quant_policy,
        fill_block=block_offsets[sequence, position // block_size].numpy(),
        fill_offset=(position % block_size).numpy(),
        query_lengths=tuple(q_seqlens.tolist()),
        kv_lengths=tuple(kv_seqlens.tolist()),
        blocks=block_offsets.numpy(),
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
        if k_scales_zeros is None or v_scales_zeros is None:
            k_scales_zeros, v_scales_zeros = k_cache, v_cache  # not read
        out = key.new_empty(len(query), self.num_heads, self.v_head_size)
        caches = {"k_cache": k_cache, "v_cache": v_cache, "k_scales": k_scales_zeros, "v_scales": v_scales_zeros}
        step = decoding(query, key, value, k_scales_zeros, v_scales_zeros)
        if step and _alike(query, key, value) and _alike(k_cache, v_cache) and _alike(k_scales_zeros, v_scales_zeros):
            step.do(
                ATTEND,
                tasks=len(query) * self.num_kv_heads,
                reads={"x": query, "second": key, "third": value, **caches},
                writes={"out": out},
                step=query.stride(0),
                heads=self.num_heads,
                kv_heads=self.num_kv_heads,
                d=self.head_size,
                blocks=len(k_cache),
                width=k_cache.size(-1),
                size=k_cache.size(1),
                span=k_cache.stride(0) // k_cache.stride(1),
                scale_span=k_scales_zeros.stride(0) // k_scales_zeros.stride(1),
                number=self.scale,
            )
        else:
            self._by_sequences(query, key, value, tuple(map(stored, caches.values())), meta, out)
        return out

    def _by_sequences(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cached: tuple[Any, ...],
        meta: CpuAttentionMetadata,
        out: Tensor,
    ) -> None:
        k_cache, v_cache, k_scales, v_scales = cached
        places = meta.fill_block, meta.fill_offset
        kernels.write(stored(key), *places, k_cache, k_scales, 0, self.num_kv_heads)
        kernels.write(stored(value), *places, v_cache, v_scales, 0, self.num_kv_heads)
        queries, written, size = stored(query), stored(out), k_cache.shape[1]
        first = 0
        for new_tokens, length, blocks in zip(meta.query_lengths, meta.kv_lengths, meta.blocks, strict=True):
            last = first + new_tokens
            if new_tokens == 1:
                sequence = blocks, size, length, self.scale, 0, self.num_kv_heads
                kernels.attend(queries[first], *cached, *sequence, written[first])  # type: ignore[call-arg]
            else:
                seen = [key.new_empty(length, self.num_kv_heads, d, dtype=torch.float32) for d in self._widths]
                kernels.read(k_cache, k_scales, blocks, stored(seen[0]))
                kernels.read(v_cache, v_scales, blocks, stored(seen[1]))
                out[first:last] = self._attend(query[first:last].float(), *(each.transpose(0, 1) for each in seen))
            first = last

    @property
    def _widths(self) -> tuple[int, int]:
        return self.head_size, self.v_head_size

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One sequence: query [n, heads, dim], keys and values [kv_heads, length, dim] → [n, heads, dim].

        A chunk that is not a prompt's first sees all earlier tokens through the cache.
        """
        new, length = len(query), keys.size(1)
        cores.take(2 * new * length * self.num_heads * query.size(-1))
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
        cores.take(0)
        return out[0].transpose(0, 1)


def _alike(*tensors: Tensor) -> bool:
    """Whether their rows lie as far apart in all of them."""
    return len({each.stride(0) for each in tensors if len(each) > 1}) <= 1
