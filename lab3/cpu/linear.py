"""Linear layers on the CPU: 16-bit and 32-bit weights, and AWQ's 4-bit weights without a dequantized copy.

A matrix product's last bits depend on how many rows it has, and a greedy answer can depend on those bits. So that a
request gets the same answer alone and among others, each sequence's rows are multiplied by themselves where torch's
kernel does not treat rows independently. With 4-bit weights each row is, so that what a prompt gives does not even
depend on how much of it was in the cache already (LMDeploy's prefix caching) or on how it was cut into chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

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

_TASKS = 2 * cores.ALL  # that a product of a decoding step is cut into
_step = threading.local()


def begin_step(query_lengths: Sequence[int], *, is_decoding: bool) -> None:
    """Tell the layers which rows of this thread's next forward pass belong together: those of one sequence each."""
    _step.lengths, _step.is_decoding = list(query_lengths), is_decoding


def _lengths(rows: int) -> list[int]:
    """The sequences' lengths in a product of `rows` rows; the output layer sees one row of each sequence."""
    lengths: list[int] = getattr(_step, "lengths", [])
    if sum(lengths) == rows:
        return lengths
    return [1] * rows if rows == len(lengths) else [rows]


class CpuLinear(LinearImpl):  # type: ignore[misc]
    """x @ weight.T + bias, sequence by sequence.

    Prompts in fp16 are multiplied in fp32, which is up to 5 times faster in torch. The rows of a decoding step stay
    together, which `products.times_plain` keeps apart by itself.
    """

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """x [..., in_features], weight [out_features, in_features] → [..., out_features]."""
        rows = x.reshape(-1, x.size(-1))
        lengths = _lengths(len(rows))
        if max(lengths) == 1:
            return _with_bias(_few_rows(rows, weight), bias).view(*x.shape[:-1], -1)
        # By the longest sequence and not by all rows: a request must not be computed otherwise for being in company.
        cores.take(max(lengths) * weight.numel())
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
    if len(rows) == 1:
        return _few_rows(rows, weight)
    return F.linear(rows.to(wide.dtype), wide).to(rows.dtype)


def _few_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """Each of `rows` [n, in_features] by itself, of the type of `weight`."""
    out = rows.new_empty(len(rows), len(weight))
    if step := decoding(out, rows, weight):
        sizes = {"rows": len(rows), "k": rows.size(1), "n": len(weight)}
        step.do(TIMES_16, tasks=_TASKS, reads={"x": rows, "weight": weight}, writes={"out": out}, **sizes)
        return out
    x, w, written = stored(rows), stored(weight), stored(out)

    def multiply(first: int, last: int) -> None:
        products.times_plain(x, w, first, last, written)

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
    """AWQ weights, (code - zero) * scale, of any group size; a prompt's product dequantizes a block at a time."""

    def __init__(self, spec: LinearW4A16BuildSpec) -> None:
        self.spec = spec

    def update_weights(
        self, qweight: Tensor, scales: Tensor, qzeros: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Repack once after loading; the loader's tensors are dropped.

        qweight int32 [K, N/8], scales fp16 [K/g, N], qzeros int32 [K/g, N/8]
        → as `products.times_4_bits` reads them: uint8 [N'/64, K, 32], fp16 and uint8 [N'/64, K/g, 64].
        """
        codes, zeros = unpack_awq(qweight, qzeros, self.spec.w_bit)
        in_blocks = products.blocks_of_groups
        return products.blocks_of_codes(codes), in_blocks(scales.half()), in_blocks(zeros.to(torch.uint8)), bias

    def forward(
        self, x: Tensor, qweight: Tensor, scales: Tensor, qzeros: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """x [..., in_features] → [..., out_features], in the type of x."""
        rows = x.reshape(-1, self.spec.in_features)
        out = rows.new_empty(len(rows), self.spec.out_features)
        weights = stored(qweight), stored(scales), stored(qzeros)
        if step := decoding(out, rows):
            blocks, k = qweight.shape[:2]
            facts = {"rows": len(rows), "k": k, "n": out.size(1), "blocks": blocks, "groups": scales.size(1)}
            reads = {"x": rows, "weight": qweight, "scales": scales, "zeros": qzeros}
            step.do(TIMES_4, tasks=min(blocks, _TASKS), reads=reads, writes={"out": out}, **facts)
        elif getattr(_step, "is_decoding", True):
            _times_4_bits(rows, weights, out)
        else:
            _prompt_times_4_bits(rows, weights, out)
        return _with_bias(out, None if bias is None else bias.to(x.dtype)).view(*x.shape[:-1], -1)


def _prompt_times_4_bits(rows: Tensor, weights: tuple[Any, Any, Any], out: Tensor) -> None:
    x, written = stored(rows.float().contiguous()), stored(out)

    def multiply(first: int, last: int) -> None:
        products.prompt_times_4_bits(x, *weights, cores.ALL, first, last, written)

    cores.in_parts(len(weights[0]) * cores.ALL, rows.numel() * out.size(1), multiply)


def _times_4_bits(rows: Tensor, weights: tuple[Any, Any, Any], out: Tensor) -> None:
    x, written = stored(rows), stored(out)

    def multiply(first: int, last: int) -> None:
        products.times_4_bits(x, *weights, first, last, written)

    cores.in_parts(len(weights[0]), rows.numel() * out.size(1), multiply)
