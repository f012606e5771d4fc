"""Layers on the CPU give what the arithmetic says: AWQ's equal the dequantized reference."""

from __future__ import annotations

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
