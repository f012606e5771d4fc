"""The lab on an NVIDIA GPU: LMDeploy's own engines, the driver's own figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab3 import collect, funcall, vram
from lab3.chat import chat
from lab3.collect import kv_tokens
from lab3.models import kv_bytes_per_token, read_config
from lab3.quantize import QuantizeResult, quantize
from lab3.serve import ApiServer

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("own_gpu")]

QUESTION = "What is the capital of Germany?"


@pytest.fixture(scope="module")
def quantized_1_8b(random_1_8b: Path) -> QuantizeResult:
    """128 group size, as in the lab; fewer samples, since random weights have no quality to lose."""
    out = random_1_8b.with_name("random-1.8b-w4a16")
    return quantize(random_1_8b, out, samples=8, seqlen=2048, batch_size=8, quality=False, overwrite=True)


def test_the_1_8b_shape_shrinks_to_the_predicted_bytes(quantized_1_8b: QuantizeResult):
    assert quantized_1_8b.group_size == 128
    assert abs(quantized_1_8b.prediction_error) < 0.01
    assert quantized_1_8b.weight_bytes_after < 0.45 * quantized_1_8b.weight_bytes_before
    assert quantized_1_8b.folder_bytes_after < 0.45 * quantized_1_8b.folder_bytes_before


@pytest.mark.parametrize("engine", ["turbomind", "pytorch"])
def test_the_quantized_1_8b_model_is_served_measured_and_gone(quantized_1_8b: QuantizeResult, engine: str):
    before = vram.read(device="cuda")
    with ApiServer(quantized_1_8b.out, kv_bits=4, cache_ratio=0.4, engine=engine) as server:
        with vram.Meter(server.pid, device="cuda") as meter:
            reply = chat(QUESTION, base_url=server.base_url, max_tokens=16, temperature=0.0)
        assert server.engine == engine
        assert reply.usage is not None
        assert reply.usage.completion_tokens > 0
        total = meter.peak.total_mib
        # used = o + W + r (T - o - W) + e: at least the pool and the weights, at most the pool, the weights and 4 GiB
        weights = quantized_1_8b.weight_bytes_after / 2**20
        assert 0.4 * total < meter.peak.used_mib - before.used_mib < 0.4 * total + 0.6 * weights + 4096
    after = vram.read(device="cuda")
    assert abs(after.used_mib - before.used_mib) <= 64


def test_the_baseline_takes_its_share_of_the_card(random_1_8b: Path):
    with ApiServer(random_1_8b, cache_ratio=0.8, engine="turbomind") as server:
        chat(QUESTION, base_url=server.base_url, max_tokens=8, temperature=0.0)
        reading = vram.read(server.pid, device="cuda")
    assert 0.8 * reading.total_mib < reading.used_mib < 0.9 * reading.total_mib


@pytest.mark.parametrize("kv_bits", [16, 8])  # with int4, TurboMind 0.18 dies at the first token of a 64-wide head
def test_the_embedded_model_answers_on_turbomind(embedded_model: Path, kv_bits: int):
    with ApiServer(embedded_model, kv_bits=kv_bits, cache_ratio=0.2, engine="turbomind") as server:
        reply = chat(QUESTION, base_url=server.base_url, stream=True, max_tokens=48, temperature=0.0)
    assert server.engine == "turbomind"
    assert reply.finish_reason in ("stop", "length")
    assert reply.ttft_s is not None
    assert "Berlin" in reply.text


@pytest.mark.parametrize("weights", ["plain", "w4a16"])
def test_the_embedded_model_answers_and_calls(request: pytest.FixtureRequest, weights: str):
    folder: Path = request.getfixturevalue("embedded_model" if weights == "plain" else "w4a16")
    with ApiServer(folder, kv_bits=4, cache_ratio=0.2, engine="pytorch") as server:
        reply = chat(QUESTION, base_url=server.base_url, stream=True, max_tokens=48, temperature=0.0)
        run = funcall.run_tools(collect.TOOL_QUESTION, base_url=server.base_url, temperature=0.0)
        tokens = kv_tokens(server.base_url)
    assert "Berlin" in reply.text
    assert [(c.name, c.result) for c in run.calls] == [("add", 8), ("mul", 16)], run.to_dict()
    assert run.outcome == "answered"
    assert tokens is not None
    assert tokens * kv_bytes_per_token(read_config(folder), 4) < 0.2 * vram.devices()[0].total_mib * 2**20


def test_auto_chooses_the_gpus_engines(embedded_model: Path, w4a16: Path):
    """TurboMind has AWQ for group size 128 alone; the embedded model has 64."""
    chosen = {}
    for name, folder in (("plain", embedded_model), ("w4a16", w4a16)):
        with ApiServer(folder, cache_ratio=0.1) as server:
            chosen[name] = server.engine
    assert chosen == {"plain": "turbomind", "w4a16": "pytorch"}


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
