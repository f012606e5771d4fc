"""Layers on the CPU give what the arithmetic says: AWQ's equal the dequantized reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow


def awq_layer(*, inputs: int, outputs: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random qweight, scales, qzeros as an AWQ checkpoint has them; all 16 codes and zeros occur."""
    generator = torch.Generator().manual_seed(inputs + outputs + group)
    words = 2**31
    qweight = torch.randint(-words, words, (inputs, outputs // 8), generator=generator).int()
    qzeros = torch.randint(-words, words, (inputs // group, outputs // 8), generator=generator).int()
    scales = (torch.rand(inputs // group, outputs, generator=generator) * 0.02 + 0.001).half()
    return qweight, scales, qzeros


def build(*, inputs: int, outputs: int, group: int):
    from lmdeploy.pytorch.backends.awq_modules import LinearW4A16BuildSpec

    from lab3.cpu.linear import build_w4a16

    return build_w4a16(
        LinearW4A16BuildSpec(
            in_features=inputs, out_features=outputs, w_bit=4, group_size=group, bias=False, output_dtype=torch.float16
        )
    )


@pytest.mark.parametrize(
    ("group", "operator"),
    [
        (32, "PackedW4A16"),
        (64, "PackedW4A16"),
        (96, "PackedW4A16"),
        (128, "PackedW4A16"),
        (192, "PackedW4A16"),
        (16, "DequantizedW4A16"),
        (48, "DequantizedW4A16"),
        (24, "DequantizedW4A16"),
    ],
)
@pytest.mark.parametrize("rows", [1, 7, 130])
def test_an_awq_layer_equals_the_dequantized_reference(group: int, operator: str, rows: int):
    from lmdeploy.pytorch.backends.default.awq_modules import dequantize_gemm

    inputs, outputs = group * 8, 320
    qweight, scales, qzeros = awq_layer(inputs=inputs, outputs=outputs, group=group)
    weight = dequantize_gemm(qweight, qzeros, scales, 4, group).double()
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).half()
    bias = torch.linspace(-1, 1, outputs).half()

    impl = build(inputs=inputs, outputs=outputs, group=group)
    assert type(impl).__name__ == operator
    out = impl.forward(x, *impl.update_weights(qweight, scales, qzeros, bias))

    expected = x.double() @ weight + bias.double()
    error = (out.double() - expected).norm() / expected.norm()
    # bf16 has 8 bits of fraction, fp16 has 11: these are rounding errors, an order of magnitude under a wrong zero.
    assert error < (4e-3 if operator == "PackedW4A16" else 5e-4)
    assert out.dtype == torch.float16


def test_the_packed_layer_keeps_no_dequantized_copy():
    inputs, outputs, group = 1536, 576, 64
    qweight, scales, qzeros = awq_layer(inputs=inputs, outputs=outputs, group=group)
    kept = build(inputs=inputs, outputs=outputs, group=group).update_weights(qweight, scales, qzeros)
    nbytes = sum(t.numel() * t.element_size() for t in kept if t is not None)
    assert nbytes <= inputs * outputs * 0.5 * 1.13  # 4 bits, and 4 bytes for each group of 64 (32 bytes)


@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_a_half_precision_layer_is_as_exact_as_its_type(rows: int):
    from lab3.cpu.linear import CpuLinear

    generator = torch.Generator().manual_seed(rows)
    x, weight, bias = (torch.randn(*s, generator=generator).half() for s in ((rows, 576), (200, 576), (200,)))
    expected = x.double() @ weight.double().t() + bias.double()
    out = CpuLinear().forward(x, weight, bias)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.double(), expected, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_long_prompts_are_multiplied_by_the_weights_that_the_kernel_multiplies_by(capability: str):
    """torch chooses a layout for 4-bit weights by the processor: each that it has here, and one that is not known."""
    code = """
import torch
from lmdeploy.pytorch.backends.default.awq_modules import dequantize_gemm
from lab3.cpu import linear
from tests.cpu.test_linear import awq_layer, build
for outputs in (320, 336):
    qweight, scales, qzeros = awq_layer(inputs=512, outputs=outputs, group=64)
    impl = build(inputs=512, outputs=outputs, group=64)
    weights = impl.update_weights(qweight, scales, qzeros)
    block = linear._block_of_outputs()
    if block and outputs % block == 0:
        exact = dequantize_gemm(qweight, qzeros, scales, 4, 64).float()
        dense = impl._dense(*weights[:2], block).double().view(-1, 512, outputs).sum(0)
        # The kernel's factors and offsets are bf16: they are known to 8 bits, what is made of them to 16.
        factor, offset = weights[1].double().repeat_interleave(64, dim=0).unbind(-1)
        codes = torch.round((exact.double() - offset) / factor) + 8
        torch.testing.assert_close(dense, (codes - 8) * factor + offset, rtol=2**-16, atol=1e-6)
    x = torch.randn(100, 512, generator=torch.Generator().manual_seed(0)).half()
    product = x.bfloat16().double() @ dequantize_gemm(qweight, qzeros, weights[1][..., 0].half(), 4, 64).double()
    linear.begin_step([100])
    long = (impl.forward(x, *weights) - product).norm()
    linear.begin_step([20] * 5)
    short = (impl.forward(x, *weights) - product).norm()
    assert long < 1.05 * short, (long, short)  # no less exact than the kernel
print(torch.backends.cpu.get_cpu_capability(), block)
"""
    environ = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    used, block = done.stdout.split()
    assert int(block) == {"DEFAULT": 0, "AVX2": 32, "AVX512": 64}.get(used, 0)


def test_a_long_sequence_gives_the_same_bits_alone_and_in_company_and_so_do_the_others():
    from lab3.cpu.linear import begin_step

    qweight, scales, qzeros = awq_layer(inputs=512, outputs=320, group=64)
    impl = build(inputs=512, outputs=320, group=64)
    weights = impl.update_weights(qweight, scales, qzeros)
    x = torch.randn(111, 512, generator=torch.Generator().manual_seed(0)).half()
    parts = [10, 70, 1, 30]
    begin_step(parts)
    together = impl.forward(x, *weights)
    alone = []
    for part in x.split(parts):
        begin_step([len(part)])
        alone.append(impl.forward(part, *weights))
    assert torch.equal(together, torch.cat(alone))


def test_where_bf16_is_slow_a_long_prompt_is_multiplied_by_the_same_weights_in_fp32(monkeypatch: pytest.MonkeyPatch):
    from lab3.cpu import linear

    if not (block := linear._block_of_outputs()):
        pytest.skip("torch's layout on this processor is not one that lab3 reads")
    qweight, scales, qzeros = awq_layer(inputs=512, outputs=320, group=64)
    impl = build(inputs=512, outputs=320, group=64)
    weights = impl.update_weights(qweight, scales, qzeros)
    x = torch.randn(100, 512, generator=torch.Generator().manual_seed(0)).half()
    monkeypatch.setattr(linear, "_DENSE_TYPE", torch.bfloat16)
    in_two = impl._dense(*weights[:2], block).double().view(2, 512, 320).sum(0)
    monkeypatch.setattr(linear, "_DENSE_TYPE", torch.float32)
    dense = impl._dense(*weights[:2], block).double()
    torch.testing.assert_close(dense, in_two, rtol=2**-15, atol=1e-6)
    linear.begin_step([100])
    exact = x.double() @ dense
    assert (impl.forward(x, *weights) - exact).norm() < 5e-4 * exact.norm()  # fp16's rounding of the result, no more
