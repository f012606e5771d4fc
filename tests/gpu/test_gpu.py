"""The embedded model on an NVIDIA GPU: LMDeploy's own engines, and its own kernels beside lab3's CPU device."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab3.capacity import kv_tokens
from lab3.chat import chat
from lab3.serve import ApiServer

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("own_gpu")]

QUESTION = "What is the capital of Germany?"


@pytest.mark.parametrize("kv_bits", [16, 8, 4])
def test_the_embedded_model_answers_on_turbomind(wide_model: Path, kv_bits: int):
    with ApiServer(wide_model, kv_bits=kv_bits, cache_ratio=0.2, engine="turbomind") as server:
        reply = chat(QUESTION, base_url=server.base_url, stream=True, max_tokens=48, temperature=0.0)
        tokens = kv_tokens(server.base_url, server.log_path)
    assert server.engine == "turbomind"
    assert reply.finish_reason in ("stop", "length")
    assert reply.ttft_s is not None
    assert "Berlin" in reply.text
    assert tokens


def test_the_cpu_writes_the_same_kv_bytes_as_the_card():
    """lab3's CPU device against LMDeploy's Triton kernel where it is at home."""
    import torch
    from lmdeploy.messages import QuantPolicy
    from lmdeploy.pytorch.kernels.cuda import fill_kv_cache

    from lab3.cpu import kv_quant

    generator = torch.Generator().manual_seed(0)
    tokens, heads, dim, block = 40, 3, 64, 16
    for dtype in (torch.float16, torch.bfloat16):
        for bits, policy in ((8, QuantPolicy.INT8), (4, QuantPolicy.INT4)):
            states = (torch.randn(tokens, heads, dim, generator=generator) * 3 + 1).to(dtype)
            on_card = states.cuda()
            cache = torch.zeros(3, block, heads, dim * bits // 8, dtype=torch.uint8, device="cuda")
            sz = torch.zeros(3, block, heads, 2, dtype=dtype, device="cuda")
            length = torch.tensor([tokens], device="cuda")
            fill_kv_cache(
                on_card, on_card.clone(), cache, torch.zeros_like(cache), torch.zeros_like(length), length, length,
                tokens, torch.arange(3, device="cuda")[None], sz, torch.zeros_like(sz), quant_policy=policy,
            )  # fmt: skip
            packed, scales_zeros = kv_quant.quantize(states, bits=bits, stored_dtype=dtype)
            difference = (packed.int() - cache.flatten(0, 1)[:tokens].cpu().int()).abs()
            if bits == 8:  # the card's fast division may fall on the other side of a step
                assert difference.max() <= 1
                assert (difference > 0).float().mean() < 0.01
            else:
                low, high = (packed & 15).int(), (packed >> 4).int()
                theirs = cache.flatten(0, 1)[:tokens].cpu()
                assert ((low - (theirs & 15).int()).abs() + (high - (theirs >> 4).int()).abs()).max() <= 1
                assert (difference > 0).float().mean() < 0.01
            torch.testing.assert_close(scales_zeros, sz.flatten(0, 1)[:tokens].cpu(), rtol=2**-7, atol=0)
