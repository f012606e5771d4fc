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


@pytest.mark.parametrize("group", [16, 24, 32, 48, 64, 96, 128, 192])
@pytest.mark.parametrize(
    ("rows", "is_decoding"), [(1, True), (2, True), (3, True), (7, True), (1, False), (131, False)]
)
@pytest.mark.parametrize("outputs", [320, 328])
def test_an_awq_layer_equals_the_dequantized_reference(group: int, rows: int, is_decoding: bool, outputs: int):
    from lmdeploy.pytorch.backends.default.awq_modules import dequantize_gemm

    from lab3.cpu.linear import begin_step

    inputs = group * 8
    qweight, scales, qzeros = awq_layer(inputs=inputs, outputs=outputs, group=group)
    weight = dequantize_gemm(qweight, qzeros, scales, 4, group).double()
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).half()
    bias = torch.linspace(-1, 1, outputs).half()

    impl = build(inputs=inputs, outputs=outputs, group=group)
    begin_step([1] * rows if is_decoding else [rows], is_decoding=is_decoding)
    out = impl.forward(x, *impl.update_weights(qweight, scales, qzeros, bias))

    expected = x.double() @ weight + bias.double()
    error = (out.double() - expected).norm() / expected.norm()
    assert error < 5e-4  # fp16's rounding of the result, far under a wrong zero
    assert out.dtype == torch.float16


def test_weights_of_eight_bits_are_refused():
    from lmdeploy.pytorch.backends.awq_modules import LinearW4A16BuildSpec

    from lab3.cpu.linear import build_w4a16

    spec = LinearW4A16BuildSpec(
        in_features=64, out_features=64, w_bit=8, group_size=64, bias=False, output_dtype=torch.float16
    )
    with pytest.raises(NotImplementedError, match="4 bits, not 8"):
        build_w4a16(spec)


def test_the_packed_layer_keeps_no_dequantized_copy():
    inputs, outputs, group = 1536, 576, 64
    qweight, scales, qzeros = awq_layer(inputs=inputs, outputs=outputs, group=group)
    kept = build(inputs=inputs, outputs=outputs, group=group).update_weights(qweight, scales, qzeros)
    nbytes = sum(t.numel() * t.element_size() for t in kept if t is not None)
    assert nbytes <= inputs * outputs * 0.5 * 1.1  # 4 bits, and 3 bytes for each group of 64 (32 bytes)


@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_a_half_precision_layer_is_as_exact_as_its_type(rows: int):
    from lab3.cpu.linear import CpuLinear

    generator = torch.Generator().manual_seed(rows)
    x, weight, bias = (torch.randn(*s, generator=generator).half() for s in ((rows, 576), (200, 576), (200,)))
    expected = x.double() @ weight.double().t() + bias.double()
    out = CpuLinear().forward(x, weight, bias)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.double(), expected, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("group", [64, 96, 768])
def test_the_inputs_of_a_prompt_are_taken_as_many_at_a_time_as_a_core_keeps_at_hand(
    monkeypatch: pytest.MonkeyPatch, group: int
):
    """More of them than `_DEPTH`, which is no multiple of every group size: the last part is shorter."""
    from lmdeploy.pytorch.backends.default.awq_modules import dequantize_gemm

    from lab3.cpu import cores, linear, products

    inputs = 4608
    assert inputs > 2 * products._DEPTH
    qweight, scales, qzeros = awq_layer(inputs=inputs, outputs=136, group=group)
    impl = build(inputs=inputs, outputs=136, group=group)
    weights = impl.update_weights(qweight, scales, qzeros)
    x = torch.randn(29, inputs, generator=torch.Generator().manual_seed(0)).half()
    product = x.double() @ dequantize_gemm(qweight, qzeros, scales, 4, group).double()
    linear.begin_step([29], is_decoding=False)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(cores, "ALL", threads)
        found.append(impl.forward(x, *weights))
        assert (found[-1].double() - product).norm() < 5e-4 * product.norm()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 9])
def test_a_row_gives_the_same_bits_alone_and_among_others(rows: int):
    from lab3.cpu.linear import begin_step

    qweight, scales, qzeros = awq_layer(inputs=192, outputs=136, group=48)
    impl = build(inputs=192, outputs=136, group=48)
    weights = impl.update_weights(qweight, scales, qzeros)
    x = torch.randn(rows, 192, generator=torch.Generator().manual_seed(rows)).half()
    begin_step([1] * rows, is_decoding=True)
    together = impl.forward(x, *weights)
    assert torch.equal(together, torch.cat([impl.forward(row, *weights) for row in x.split(1)]))


def test_a_prompt_s_row_gives_the_same_bits_whatever_is_multiplied_with_it():
    """Alone, in company, in chunks, or after rows whose keys and values are in the cache already."""
    from lab3.cpu.linear import begin_step

    qweight, scales, qzeros = awq_layer(inputs=512, outputs=320, group=64)
    impl = build(inputs=512, outputs=320, group=64)
    weights = impl.update_weights(qweight, scales, qzeros)
    x = torch.randn(111, 512, generator=torch.Generator().manual_seed(0)).half()
    begin_step([10, 70, 1, 30], is_decoding=False)
    together = impl.forward(x, *weights)
    for size in (1, 2, 5, 6, 7, 64):
        begin_step([size], is_decoding=False)
        assert torch.equal(together, torch.cat([impl.forward(part, *weights) for part in x.split(size)]))
