"""Linear layers on the CPU: 16-bit and 32-bit weights, and AWQ's 4-bit weights without a dequantized copy.

A matrix product's last bits depend on how many rows it has, and a greedy answer can depend on those bits. So that a
request gets the same answer alone and among others, each sequence's rows are multiplied by themselves where torch's
kernel does not treat rows independently.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from lmdeploy.pytorch.backends.awq_modules import LinearW4A16BuildSpec, LinearW4A16Impl
from lmdeploy.pytorch.backends.default.awq_modules import unpack_awq
from lmdeploy.pytorch.backends.linear import LinearImpl
from torch import Tensor

from lab3.cpu import cores, products
from lab3.cpu.compiled import stored
from lab3.cpu.graph import decoding
from lab3.cpu.replay import ADD, TIMES_4, TIMES_16

# From so many rows of a sequence on, weights made fp32 for one product gain.
_LONG = 64
_SLICE_ELEMENTS = 2**19  # of them at a time: 2 MiB, as much as the processor keeps at hand
_SLICE_BLOCKS = 4  # of outputs at least: narrower products are slow
_DEQUANTIZING = 16  # multiplications that take as long as making a weight fp32
_TASKS = 2 * cores.ALL  # that a product of a decoding step is cut into
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
    together: `products.times_16_bits` keeps them apart by itself, and in fp32 no rounding makes a last bit matter.
    """

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """x [..., in_features], weight [out_features, in_features] → [..., out_features]."""
        rows = x.reshape(-1, x.size(-1))
        lengths = _lengths(len(rows))
        if max(lengths) == 1 and x.dtype != torch.float32:
            return _with_bias(_few_rows(rows, weight), bias).view(*x.shape[:-1], -1)
        # By the longest sequence and not by all rows: a request must not be computed otherwise for being in company.
        cores.take(max(lengths) * weight.numel())
        if max(lengths) == 1:
            out = F.linear(rows, weight)
        else:
            wide = weight.float() if x.dtype == torch.float16 else weight
            out = torch.cat([_sequence(part, weight, wide) for part in rows.split(lengths)])
        cores.take(0)
        return _with_bias(out, bias).view(*x.shape[:-1], -1)


def _with_bias(out: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return out
    if step := decoding(out, bias):
        step.do(ADD, tasks=len(out), reads={"x": out, "weight": bias}, n=out.size(1))
    else:
        out += bias
    return out


def _sequence(rows: Tensor, weight: Tensor, wide: Tensor) -> Tensor:
    if len(rows) == 1 and rows.dtype != torch.float32:
        return _few_rows(rows, weight)
    return F.linear(rows.to(wide.dtype), wide).to(rows.dtype)


def _few_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """Each of `rows` [n, in_features] by itself, of 16 bits as `weight` is."""
    out = rows.new_empty(len(rows), len(weight))
    if step := decoding(out, rows, weight):
        sizes = {"rows": len(rows), "k": rows.size(1), "n": len(weight)}
        step.do(TIMES_16, tasks=_TASKS, reads={"x": rows, "weight": weight}, writes={"out": out}, **sizes)
        return out
    x, w, written = stored(rows), stored(weight), stored(out)

    def multiply(first: int, last: int) -> None:
        products.times_16_bits(x, w, first, last, written)

    cores.in_parts(len(weight), len(rows) * weight.numel(), multiply)
    return out


def build_w4a16(spec: LinearW4A16BuildSpec) -> LinearW4A16Impl:
    """The operator for an AWQ layer.

    Raises:
        NotImplementedError: weights of other than 4 bits.
    """
    if spec.w_bit != 4:
        raise NotImplementedError(f"lab3's CPU device runs AWQ weights of 4 bits, not {spec.w_bit}.")
    return PackedW4A16(spec)


class PackedW4A16(LinearW4A16Impl):  # type: ignore[misc]
    """AWQ weights, (code - zero) * scale, of any group size; dequantized for one product with a long prompt at most."""

    def __init__(self, spec: LinearW4A16BuildSpec) -> None:
        self.spec = spec

    def update_weights(
        self, qweight: Tensor, scales: Tensor, qzeros: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Repack once after loading; the loader's tensors are dropped.

        qweight int32 [K, N/8], scales fp16 [K/g, N], qzeros int32 [K/g, N/8]
        → as `products.times_4_bits` reads them: uint8 [N'/64, K, 32], fp16 [K/g, N'], uint8 [K/g, N'].
        """
        codes, zeros = unpack_awq(qweight, qzeros, self.spec.w_bit)
        filling = (0, -self.spec.out_features % products.BLOCK)
        scales, zeros = F.pad(scales.half(), filling).contiguous(), F.pad(zeros.to(torch.uint8), filling).contiguous()
        return products.blocks_of_codes(codes), scales, zeros, bias

    def forward(
        self, x: Tensor, qweight: Tensor, scales: Tensor, qzeros: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """x [..., in_features] → [..., out_features], in the type of x."""
        rows = x.reshape(-1, self.spec.in_features)
        out = rows.new_empty(len(rows), self.spec.out_features)
        weights = stored(qweight), stored(scales), stored(qzeros)
        lengths = _lengths(len(rows))
        if max(lengths) < _LONG:
            if step := decoding(out, rows):
                blocks, k = qweight.shape[:2]
                facts = {"rows": len(rows), "k": k, "n": out.size(1), "blocks": blocks, "groups": len(scales)}
                reads = {"x": rows, "weight": qweight, "scales": scales, "zeros": qzeros}
                step.do(TIMES_4, tasks=min(blocks, _TASKS), reads=reads, writes={"out": out}, **facts)
            else:
                _times_4_bits(rows, weights, out)
        else:
            # By the length of each sequence: a request must not be computed otherwise for being in company.
            parts = list(zip(rows.split(lengths), out.split(lengths), strict=True))
            for part, result in parts:
                if len(part) < _LONG:
                    _times_4_bits(part, weights, result)
            self._times_dense([pair for pair in parts if len(pair[0]) >= _LONG], weights)
        return _with_bias(out, None if bias is None else bias.to(x.dtype)).view(*x.shape[:-1], -1)

    def _times_dense(self, parts: list[tuple[Tensor, Tensor]], weights: tuple[Any, Any, Any]) -> None:
        """Pairs of rows and where their products go, by slices of the outputs whose weights are dequantized to fp32."""
        inputs, outputs, blocks = self.spec.in_features, self.spec.out_features, len(weights[0])
        at_once = min(blocks, max(_SLICE_BLOCKS, _SLICE_ELEMENTS // (products.BLOCK * inputs)))
        wide = [part.float() for part, _ in parts]
        for first in range(0, blocks, at_once):
            last = min(first + at_once, blocks)
            dense = _scratch(inputs * (last - first) * products.BLOCK).view(inputs, -1)
            _dequantize(weights, first, last, dense)
            columns = slice(first * products.BLOCK, min(last * products.BLOCK, outputs))
            dense = dense[:, : columns.stop - columns.start]
            for part, (_, result) in zip(wide, parts, strict=True):
                cores.take(len(part) * dense.numel())
                result[:, columns] = part @ dense
        cores.take(0)


def _dequantize(weights: tuple[Any, Any, Any], first: int, last: int, dense: Tensor) -> None:
    out = stored(dense)

    def dequantize(begin: int, end: int) -> None:
        products.dequantize(*weights, first + begin, first + end, out[:, begin * products.BLOCK :])

    cores.in_parts(last - first, _DEQUANTIZING * dense.numel(), dequantize)


def _scratch(elements: int) -> Tensor:
    """Some fp32 numbers of this thread's: new memory costs more to get than to fill."""
    if not hasattr(_step, "scratch") or len(_step.scratch) < elements:
        _step.scratch = torch.empty(elements)
    return cast(Tensor, _step.scratch)[:elements]


def _times_4_bits(rows: Tensor, weights: tuple[Any, Any, Any], out: Tensor) -> None:
    x, written = stored(rows), stored(out)

    def multiply(first: int, last: int) -> None:
        products.times_4_bits(x, *weights, first, last, written)

    cores.in_parts(len(weights[0]), rows.numel() * out.size(1), multiply)
