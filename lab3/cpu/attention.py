"""Paged attention on the CPU: write new keys and values to LMDeploy's blocks, read them there, attend in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lmdeploy.pytorch.backends.attention import AttentionImpl, AttentionMetadata, PagedAttentionBuildSpec
from torch import Tensor

from lab3.cpu import cores, kernels, prompts
from lab3.cpu.compiled import stored
from lab3.cpu.graph import decoding
from lab3.cpu.replay import ATTEND

_READING, _WRITING = 16, 64  # multiplications that take as long as reading a number of the cache, and as writing one


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
        "sliding window": spec.sliding_window not in (None, -1, (-1, -1)),
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
        places, keys, values = (meta.fill_block, meta.fill_offset), stored(key), stored(value)

        def write(first: int, last: int) -> None:
            kernels.write(keys, *places, k_cache, k_scales, first, last)
            kernels.write(values, *places, v_cache, v_scales, first, last)

        cores.in_parts(self.num_kv_heads, _WRITING * (key.numel() + value.numel()), write)
        queries, written, size = stored(query), stored(out), k_cache.shape[1]
        first = 0
        for new_tokens, length, blocks in zip(meta.query_lengths, meta.kv_lengths, meta.blocks, strict=True):
            last = first + new_tokens
            if meta.is_decoding:  # and not: one new token, which may be a prompt's whose others are in the cache
                sequence = blocks, size, length, self.scale, 0, self.num_kv_heads
                kernels.attend(queries[first], *cached, *sequence, written[first])  # type: ignore[call-arg]
            else:
                self._prompt(queries[first:last], cached, blocks, length, written[first:last])
            first = last

    def _prompt(self, query: Any, cached: tuple[Any, ...], blocks: Any, length: int, out: Any) -> None:
        """One sequence of `length` tokens, whose last ones `query` [n, heads, d] are → out [n, heads, d_v].

        A chunk that is not a prompt's first sees all earlier tokens through the cache.
        """
        k_cache, v_cache, k_scales, v_scales = cached
        heads, new = self.num_kv_heads, len(query)
        tokens, d, d_v = (prompts.padded(size) for size in (length, self.head_size, self.v_head_size))
        keys, values = np.empty((heads, d, tokens), np.float32), np.empty((heads, tokens, d_v), np.float32)

        def read(first: int, last: int) -> None:
            prompts.read(k_cache, k_scales, blocks, length, self.head_size, True, first, last, keys)
            prompts.read(v_cache, v_scales, blocks, length, self.v_head_size, False, first, last, values)

        def attend(first: int, last: int) -> None:
            prompts.attend(query, keys, values, length - new, self.scale, first, last, out)

        cores.in_parts(heads, _READING * (keys.size + values.size), read)
        cores.in_parts(prompts.pieces(new, self.num_heads), new * length * self.num_heads * (d + d_v) // 2, attend)


def _alike(*tensors: Tensor) -> bool:
    """Whether their rows lie as far apart in all of them."""
    return len({each.stride(0) for each in tensors if len(each) > 1}) <= 1
