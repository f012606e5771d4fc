"""Linear layers on the CPU: 16-bit and 32-bit weights, and AWQ's 4-bit weights without a dequantized copy.

A matrix product's last bits depend on how many rows it has, and a greedy answer can depend on those bits. So that a
request gets the same answer alone and among others, each sequence's rows are multiplied by themselves where torch's
kernel does not treat rows independently.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from lmdeploy.pytorch.backends.awq_modules import LinearW4A16BuildSpec, LinearW4A16Impl
from lmdeploy.pytorch.backends.default.awq_modules import unpack_awq
from lmdeploy.pytorch.backends.linear import LinearImpl
from torch import Tensor

from lab3.cpu import cores, kernels
from lab3.cpu.kernels import stored

# torch's int4 kernel takes these groups; others are cut into the largest of them that divides.
_KERNEL_GROUPS = (256, 128, 64, 32)
_KERNEL_ROWS = 16  # and output features in multiples of this
_int4_product = torch.ops.aten._weight_int4pack_mm_for_cpu.default
# From so many rows of a sequence on, weights dequantized for one product gain: it treats them 5 to 10 times as fast.
_LONG = 64
_DENSE_TYPE = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
_step = threading.local()


def begin_step(query_lengths: Sequence[int]) -> None:
    """Tell the layers which rows of this thread's next forward pass belong together: those of one sequence each."""
    _step.lengths = list(query_lengths)


def _lengths(rows: int) -> list[int]:
    """The sequences' lengths in a product of `rows` rows; the output layer sees one row of each sequence."""
    lengths: list[int] = getattr(_step, "lengths", [])
    if sum(lengths) == rows:
        return lengths
    return [1] * rows if rows == len(lengths) else [rows]


class CpuLinear(LinearImpl):  # type: ignore[misc]
    """x @ weight.T + bias, sequence by sequence.

    Prompts in fp16 are multiplied in fp32, which is up to 5 times faster in torch. The rows of a decoding step stay
    together: `kernels.few_rows` keeps them apart by itself, and fp32 has no rounding that makes a last bit matter.
    """

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """x [..., in_features], weight [out_features, in_features] → [..., out_features]."""
        rows = x.reshape(-1, x.size(-1))
        lengths = _lengths(len(rows))
        # By the longest sequence and not by all rows: a request must not be computed otherwise for being in company.
        cores.take(max(lengths) * weight.numel())
        if max(lengths) == 1:
            out = F.linear(rows, weight) if x.dtype == torch.float32 else _few_rows(rows, weight)
        else:
            wide = weight.float() if x.dtype == torch.float16 else weight
            out = torch.cat([_sequence(part, weight, wide) for part in rows.split(lengths)])
        cores.take(0)
        return (out if bias is None else out + bias).view(*x.shape[:-1], -1)


def _sequence(rows: Tensor, weight: Tensor, wide: Tensor) -> Tensor:
    if len(rows) == 1 and rows.dtype != torch.float32:
        return _few_rows(rows, weight)
    return F.linear(rows.to(wide.dtype), wide).to(rows.dtype)


def _few_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """Each of `rows` [n, in_features] by itself, of 16 bits as `weight` is."""
    out = rows.new_empty(len(rows), len(weight))
    x, w, written = stored(rows.float()), stored(weight), stored(out)
    cores.in_parts(len(weight), weight.numel(), lambda first, last: kernels.few_rows(x, w, first, last, written))
    return out


def build_w4a16(spec: LinearW4A16BuildSpec) -> LinearW4A16Impl:
    """The operator for an AWQ layer: torch's int4 kernel where it fits, else group-wise dequantization at each call.

    Raises:
        NotImplementedError: weights of other than 4 bits.
    """
    if spec.w_bit != 4:
        raise NotImplementedError(f"lab3's CPU device runs AWQ weights of 4 bits, not {spec.w_bit}.")
    kernel_group = next((g for g in _KERNEL_GROUPS if spec.group_size % g == 0), None)
    if kernel_group is None or spec.out_features % _KERNEL_ROWS:
        return DequantizedW4A16(spec)
    return PackedW4A16(spec, kernel_group)


class PackedW4A16(LinearW4A16Impl):  # type: ignore[misc]
    """AWQ weights in the layout of torch's CPU int4 kernel (`_weight_int4pack_mm_for_cpu`).

    AWQ means (q - zero) * scale; the kernel means (q - 8) * scale + offset; so offset = (8 - zero) * scale, the same
    numbers. It multiplies bf16 activations and accumulates in fp32: next to fp16 it loses three bits of the
    activation's fraction, far below the 4-bit weights' own error.
    """

    def __init__(self, spec: LinearW4A16BuildSpec, kernel_group: int) -> None:
        self.spec = spec
        self.kernel_group = kernel_group

    def update_weights(
        self, qweight: Tensor, scales: Tensor, qzeros: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Repack once after loading; the loader's tensors are dropped.

        qweight int32 [K, N/8], scales fp16 [K/g, N], qzeros int32 [K/g, N/8]
        → uint8 [N, K/2], bf16 [K/kernel_group, N, 2], empty.
        """
        codes, zeros = unpack_awq(qweight, qzeros, self.spec.w_bit)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.t().contiguous().int(), 1)
        scale = scales.float()
        scale_offset = torch.stack([scale, (8 - zeros.float()) * scale], dim=-1).to(torch.bfloat16)
        scale_offset = scale_offset.repeat_interleave(self.spec.group_size // self.kernel_group, dim=0)
        return packed, scale_offset.contiguous(), qzeros.new_empty(0), bias

    def forward(
        self, x: Tensor, qweight: Tensor, scales: Tensor, qzeros: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """x [..., in_features] → [..., out_features], in the type of x."""
        rows = x.reshape(-1, self.spec.in_features).to(torch.bfloat16)
        lengths = _lengths(len(rows))
        longest = max(lengths)
        block = _block_of_outputs() if longest >= _LONG else 0
        # By the longest sequence, as above.
        cores.take(longest * self.spec.in_features * self.spec.out_features)
        if block and self.spec.out_features % block == 0:
            weight = self._dense(qweight, scales, block)
            wide = x.reshape(rows.shape).float() if weight.dtype == torch.float32 else rows.repeat(1, 2)
            out = rows.new_empty(len(rows), self.spec.out_features, dtype=weight.dtype)
            parts = rows.split(lengths), wide.split(lengths), out.split(lengths)
            for part, wide_part, result in zip(*parts, strict=True):
                if len(part) >= _LONG:
                    torch.mm(wide_part, weight, out=result)
                else:
                    result.copy_(self._product(part, qweight, scales))
        else:
            out = self._product(rows, qweight, scales)  # which treats rows one by one
        out = out.to(x.dtype).view(*x.shape[:-1], self.spec.out_features)
        cores.take(0)
        return out if bias is None else out + bias.to(x.dtype)

    def _product(self, rows: Tensor, qweight: Tensor, scales: Tensor) -> Tensor:
        return _int4_product(rows, qweight, self.kernel_group, scales)

    def _dense(self, qweight: Tensor, scales: Tensor, block: int) -> Tensor:
        """The layer's weights for one product, in the type that is multiplied faster: fp32 [in_features, out_features],
        or bf16 with the rounding's remainder below it, [2 * in_features, out_features].

        bf16 alone has 8 bits for a weight, of which the kernel's own product takes 16. The embedded model's answers
        suffer from the difference; the product with both, summed in fp32, costs a third more.
        """
        times = 1 if torch.float32 == _DENSE_TYPE else 2
        weight = scales.new_empty(times * self.spec.in_features, self.spec.out_features, dtype=_DENSE_TYPE)
        codes, out = qweight.view(-1, self.spec.in_features, block // 2).numpy(), stored(weight)
        factor, offset = scales.float().unbind(-1)
        factors, offsets = stored(factor.contiguous()), stored(offset - 8 * factor)  # the kernel means code - 8

        def unpack(first: int, last: int) -> None:
            kernels.unpack(codes, factors, offsets, first, last, out)

        cores.in_parts(len(codes), weight.numel(), unpack)
        return weight


@cache
def _block_of_outputs() -> int:
    """How many outputs torch's int4 layout holds together on this processor, 0 if it is not one that `kernels.unpack`
    reads: asked of torch itself, by codes that were packed and are looked for."""
    codes = torch.randint(16, (128, 32), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1).flatten()
    for block in (64, 32):
        bytes_ = packed.view(-1, codes.size(1), block // 2)
        found = torch.cat([bytes_ & 15, bytes_ >> 4], dim=-1).transpose(1, 2).reshape(codes.shape)
        if torch.equal(found.int(), codes):
            return block
    return 0


class DequantizedW4A16(LinearW4A16Impl):  # type: ignore[misc]
    """AWQ weights in their own layout, dequantized in slices of the input features at each call: any group size."""

    _SLICE_ELEMENTS = 2**22  # 16 MiB of fp32 at a time, whatever the layer's size

    def __init__(self, spec: LinearW4A16BuildSpec) -> None:
        self.spec = spec

    def forward(
        self, x: Tensor, qweight: Tensor, scales: Tensor, qzeros: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """x [..., in_features] → [..., out_features], in the type of x."""
        group, width = self.spec.group_size, self.spec.out_features
        groups_at_once = max(1, self._SLICE_ELEMENTS // (group * width))
        rows = x.reshape(-1, self.spec.in_features).float()
        out = rows.new_zeros(len(rows), width)
        cores.take(max(_lengths(len(rows))) * self.spec.in_features * width)
        for first in range(0, scales.size(0), groups_at_once):
            some = slice(first, first + groups_at_once)
            inputs = slice(first * group, (first + groups_at_once) * group)
            codes, zeros = unpack_awq(qweight[inputs], qzeros[some], self.spec.w_bit)
            weight = (codes.float().unflatten(0, (-1, group)) - zeros.float()[:, None]) * scales[some].float()[:, None]
            out.addmm_(rows[:, inputs], weight.flatten(0, 1))
        cores.take(0)
        if bias is not None:
            out += bias.float()
        return out.to(x.dtype).view(*x.shape[:-1], width)
