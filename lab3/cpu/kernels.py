"""The small operators of a step, each one pass over its data: what torch does in ten calls is one call here.

A decoding step of a small model is thousands of torch operators on a few hundred numbers each, and calling them costs
more than computing them. numba compiles these loops for the processor at hand, once; lab3's cache keeps what it made.

Each row of an input is computed by itself and in one order, so that a request gets the same numbers alone and among
others. Sums are fp32. 16-bit numbers travel as integers, which numba has on a CPU and halves it has not: `uint16` is
fp16, `int16` is bf16 (`stored`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor

from lab3.cache import cache_root

# Sums in any order, products and sums in one instruction; nothing is assumed about infinities and NaN.
_FAST = {"reassoc", "contract", "nsz"}
_F = TypeVar("_F", bound=Callable[..., Any])


def _cache_folder() -> str | None:
    """Where the machine code is kept, or None where nothing can be. One folder for each state of this file: numba
    tells files apart by size and time, which are alike in the wheels of two versions."""
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    folder = cache_root() / "kernels" / source
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


def _compiled(**options: Any) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, _FOLDER or ""
        try:
            return numba.njit(nogil=True, cache=_FOLDER is not None, **options)(function)  # type: ignore[no-any-return]
        finally:
            numba.config.CACHE_DIR = before

    return decorate


_FOLDER = _cache_folder()


def stored(tensor: Tensor) -> Any:
    """`tensor` as a numpy array over the same memory: fp32 as it is, fp16 as `uint16`, bf16 as `int16`."""
    if tensor.dtype == torch.float16:
        tensor = tensor.view(torch.uint16)
    elif tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy()


# --- numbers -----------------------------------------------------------------------------------------------------


def _cast(result: Any, argument: Any, instructions: Callable[[ir.IRBuilder, Any], Any]) -> Any:
    """A numba intrinsic of one argument, made of LLVM's own instructions."""

    @intrinsic  # type: ignore[untyped-decorator]
    def cast(_: Any, value: Any) -> Any:
        return result(argument), lambda context, builder, signature, values: instructions(builder, values[0])

    return cast


_HALF, _FLOAT, _I8, _I16, _I32 = ir.HalfType(), ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32)
_half_to_float = _cast(types.float32, types.uint16, lambda b, v: b.fpext(b.bitcast(v, _HALF), _FLOAT))
_float_to_half = _cast(types.uint16, types.float32, lambda b, v: b.bitcast(b.fptrunc(v, _HALF), _I16))
_bf16_to_float = _cast(types.float32, types.int16, lambda b, v: b.bitcast(b.shl(b.zext(v, _I32), _I32(16)), _FLOAT))
_bits = _cast(types.uint32, types.float32, lambda b, v: b.bitcast(v, _I32))
_from_bits = _cast(types.float32, types.int32, lambda b, v: b.bitcast(v, _FLOAT))
_low = _cast(types.float32, types.uint8, lambda b, v: b.sitofp(b.zext(b.and_(v, _I8(15)), _I32), _FLOAT))
_high = _cast(types.float32, types.uint8, lambda b, v: b.sitofp(b.zext(b.lshr(v, _I8(4)), _I32), _FLOAT))
_byte = _cast(types.float32, types.uint8, lambda b, v: b.sitofp(b.zext(v, _I32), _FLOAT))
_truncated = _cast(types.uint8, types.float32, lambda b, v: b.trunc(b.fptosi(v, _I32), _I8))


def _round_to_bf16(builder: ir.IRBuilder, value: Any) -> Any:
    """To the nearest, ties to even; NaN stays one."""
    bits = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, _I32(0x7FFF))), _I32(16))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, _I32(0x7FC0), rounded), _I16)


_float_to_bf16 = _cast(types.int16, types.float32, _round_to_bf16)


def _load(number: Any) -> Any:
    """The number as fp32."""


def _store(array: Any, number: Any) -> Any:
    """`number` as the elements of `array` are stored."""


@overload(_load, inline="always", strict=False)  # type: ignore[untyped-decorator]
def _load_overload(number: Any) -> Any:
    if number == types.uint16:
        return lambda number: _half_to_float(number)
    if number == types.int16:
        return lambda number: _bf16_to_float(number)
    return lambda number: number


@overload(_store, inline="always", strict=False)  # type: ignore[untyped-decorator]
def _store_overload(array: Any, number: Any) -> Any:
    if array.dtype == types.uint16:
        return lambda array, number: _float_to_half(number)
    if array.dtype == types.int16:
        return lambda array, number: _float_to_bf16(number)
    return lambda array, number: number


_whole = _cast(types.int32, types.float32, lambda b, v: b.fptosi(v, _I32))
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504088896341), np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_HALF_ONE, _ONE, _ZERO = np.float32(0.5), np.float32(1), np.float32(0)
_EXP_MIN, _EXP_MAX = np.float32(-87.3), np.float32(88.3)


@_compiled(fastmath={"contract"})  # in this order: the two parts of ln 2 are taken away one after the other
def exp(x: Any) -> Any:
    """e**x in fp32, to two units in the last place, from -87 to 88 (held there beyond): Cephes' `expf` (S. L. Moshier,
    1992). The C library's is a call for each number, and this one is computed for sixteen at once."""
    x = min(max(x, _EXP_MIN), _EXP_MAX)
    n = np.floor(x * _LOG2_E + _HALF_ONE)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    return (p * r * r + r + _ONE) * _from_bits((_whole(n) + np.int32(127)) << np.int32(23))


# --- between the matrix products ---------------------------------------------------------------------------------


@_compiled(fastmath=_FAST, error_model="numpy")
def rms_norm(x: Any, weight: Any, eps: float, out: Any) -> None:
    """x [rows, n] / sqrt(mean(x²) + eps) * weight [n] → out [rows, n]."""
    rows, n = x.shape
    for row in range(rows):
        squares = _ZERO
        for i in range(n):
            squares += _load(x[row, i]) * _load(x[row, i])
        factor = _ONE / np.sqrt(squares / np.float32(n) + np.float32(eps))
        for i in range(n):
            out[row, i] = _store(out, _load(x[row, i]) * factor * _load(weight[i]))


@_compiled(fastmath=_FAST, error_model="numpy")
def add_rms_norm(x: Any, residual: Any, weight: Any, eps: float, total: Any, out: Any) -> None:
    """total = x + residual, rounded as it is stored; out = its `rms_norm`. All [rows, n], weight [n]."""
    rows, n = x.shape
    for row in range(rows):
        squares = _ZERO
        for i in range(n):
            total[row, i] = _store(total, _load(x[row, i]) + _load(residual[row, i]))
            squares += _load(total[row, i]) * _load(total[row, i])
        factor = _ONE / np.sqrt(squares / np.float32(n) + np.float32(eps))
        for i in range(n):
            out[row, i] = _store(out, _load(total[row, i]) * factor * _load(weight[i]))


@_compiled(fastmath=_FAST, error_model="numpy")
def silu_and_mul(gate_up: Any, out: Any) -> None:
    """silu(gate) * up, where gate_up [rows, 2 n] holds both one after the other → out [rows, n]."""
    rows, n = out.shape
    for row in range(rows):
        for i in range(n):
            gate = _load(gate_up[row, i])
            out[row, i] = _store(out, gate / (_ONE + exp(-gate)) * _load(gate_up[row, n + i]))


@_compiled(fastmath=_FAST)
def rotate(states: Any, cos: Any, sin: Any) -> None:
    """Rotary embedding in place: states [tokens, heads, d], cos and sin [tokens, d], halves rotated into each other."""
    tokens, heads, d = states.shape
    half = d // 2
    for token in range(tokens):
        for head in range(heads):
            for i in range(half):
                first, second = _load(states[token, head, i]), _load(states[token, head, i + half])
                turned = first * _load(cos[token, i]) - second * _load(sin[token, i])
                states[token, head, i] = _store(states, turned)
                turned = second * _load(cos[token, i + half]) + first * _load(sin[token, i + half])
                states[token, head, i + half] = _store(states, turned)


# --- the KV cache ------------------------------------------------------------------------------------------------


@_compiled()
def write_plain(new: Any, blocks: Any, offsets: Any, cache: Any) -> None:
    """new [tokens, heads, d] to its places [tokens] in cache [blocks, block_size, heads, d]."""
    tokens, heads, d = new.shape
    for token in range(tokens):
        block, offset = blocks[token], offsets[token]
        for head in range(heads):
            for i in range(d):
                cache[block, offset, head, i] = new[token, head, i]


@_compiled(error_model="numpy")  # the formula's roundings, each of them: nothing is fast here
def write_quantized(new: Any, blocks: Any, offsets: Any, cache: Any, scales_zeros: Any) -> None:
    """`write_plain`, quantized over each head's d numbers as `lab3.cpu.kv_quant` says.

    cache uint8 [blocks, block_size, heads, d] for 8 bits, d/2 for 4; scales_zeros [blocks, block_size, heads, 2].
    """
    tokens, heads, d = new.shape
    four = cache.shape[3] * 2 == d
    top = np.float32(15 if four else 255)
    codes = np.empty(d, np.uint8)
    for token in range(tokens):
        block, offset = blocks[token], offsets[token]
        for head in range(heads):
            low = high = _load(new[token, head, 0])
            for i in range(1, d):
                value = _load(new[token, head, i])
                low, high = min(low, value), max(high, value)
            scale = (high - low) / top
            if scale == _ZERO:
                scale = _ONE
            zero = -low / scale
            for i in range(d):
                code = _load(new[token, head, i]) / scale + zero + _HALF_ONE
                codes[i] = _truncated(min(max(code, _ZERO), top + _HALF_ONE))
            if four:
                for i in range(d // 2):
                    cache[block, offset, head, i] = codes[i] | (codes[i + d // 2] << np.uint8(4))
            else:
                for i in range(d):
                    cache[block, offset, head, i] = codes[i]
            scales_zeros[block, offset, head, 0] = _store(scales_zeros, scale)
            scales_zeros[block, offset, head, 1] = _store(scales_zeros, zero)


def _read(cache: Any, scales_zeros: Any, block: Any, offset: Any, head: Any, out: Any) -> None:
    """One head of one token as fp32 → out [d]."""


@overload(_read, strict=False)  # type: ignore[untyped-decorator]
def _read_overload(cache: Any, scales_zeros: Any, block: Any, offset: Any, head: Any, out: Any) -> Any:
    def plain(cache: Any, scales_zeros: Any, block: Any, offset: Any, head: Any, out: Any) -> None:
        for i in range(out.shape[0]):
            out[i] = _load(cache[block, offset, head, i])

    def quantized(cache: Any, scales_zeros: Any, block: Any, offset: Any, head: Any, out: Any) -> None:
        scale = _load(scales_zeros[block, offset, head, 0])
        zero = _load(scales_zeros[block, offset, head, 1])
        half = cache.shape[3]
        if half * 2 == out.shape[0]:
            for i in range(half):
                out[i] = (_low(cache[block, offset, head, i]) - zero) * scale
            for i in range(half):
                out[half + i] = (_high(cache[block, offset, head, i]) - zero) * scale
        else:
            for i in range(half):
                out[i] = (_byte(cache[block, offset, head, i]) - zero) * scale

    return quantized if cache.dtype == types.uint8 else plain


@_compiled(fastmath=_FAST)
def read(cache: Any, scales_zeros: Any, blocks: Any, out: Any) -> None:
    """A sequence's tokens, from the first one, as fp32.

    cache [blocks, block_size, heads, …], blocks [n] those of the sequence in order → out [tokens, heads, d].
    A cache in 16 or 32 bits has no scales: any array of four axes stands for them.
    """
    tokens, heads, _ = out.shape
    size = cache.shape[1]
    for token in range(tokens):
        for head in range(heads):
            _read(cache, scales_zeros, blocks[token // size], token % size, head, out[token, head])


@_compiled(fastmath=_FAST, error_model="numpy")
def attend(
    query: Any,
    k_cache: Any,
    v_cache: Any,
    k_scales: Any,
    v_scales: Any,
    blocks: Any,
    length: int,
    scale: float,
    out: Any,
) -> None:
    """Attention of one token, the last of its sequence of `length`, straight from the cache.

    query [heads, d] in fp32, blocks [n] the sequence's, caches as in `read` → out [heads, d_v]. With grouped queries a
    head of the cache is read once for its group.
    """
    heads, d = query.shape
    kv_heads, size = k_cache.shape[2], k_cache.shape[1]
    group, d_v = heads // kv_heads, out.shape[1]
    key, value = np.empty(d, np.float32), np.empty(d_v, np.float32)
    weights, sums = np.empty((group, length), np.float32), np.empty((group, d_v), np.float32)
    for kv_head in range(kv_heads):
        for token in range(length):
            _read(k_cache, k_scales, blocks[token // size], token % size, kv_head, key)
            for member in range(group):
                product = _ZERO
                for i in range(d):
                    product += query[kv_head * group + member, i] * key[i]
                weights[member, token] = product * np.float32(scale)
        for member in range(group):
            most, total = weights[member, 0], _ZERO
            for token in range(1, length):
                most = max(most, weights[member, token])
            for token in range(length):
                weights[member, token] = exp(weights[member, token] - most)
                total += weights[member, token]
            for token in range(length):
                weights[member, token] /= total
            for i in range(d_v):
                sums[member, i] = _ZERO
        for token in range(length):
            _read(v_cache, v_scales, blocks[token // size], token % size, kv_head, value)
            for member in range(group):
                weight = weights[member, token]
                for i in range(d_v):
                    sums[member, i] += weight * value[i]
        for member in range(group):
            for i in range(d_v):
                out[kv_head * group + member, i] = _store(out, sums[member, i])


# --- matrix products of a few rows ----------------------------------------------------------------------------------


@_compiled(fastmath=_FAST)
def few_rows(x: Any, weight: Any, first: int, last: int, out: Any) -> None:
    """x [rows, k] in fp32 times weight [n, k] of 16 bits → columns `first` to `last` of out [rows, n].

    The weights, of which there is much more, are read once for all rows.
    """
    rows, k = x.shape
    wide = np.empty(k, np.float32)
    for column in range(first, last):
        for i in range(k):
            wide[i] = _load(weight[column, i])
        for row in range(rows):
            product = _ZERO
            for i in range(k):
                product += x[row, i] * wide[i]
            out[row, column] = _store(out, product)


def _unpack_by(half: int) -> Any:
    """`unpack` for blocks of twice `half` outputs: a number known when it is compiled makes it twice as fast."""

    @_compiled(fastmath=_FAST)
    def unpack(codes: Any, factors: Any, offsets: Any, first: int, last: int, out: Any) -> None:
        groups, inputs = factors.shape[0], codes.shape[1]
        size, twice = inputs // groups, out.shape[0] > inputs
        factor, offset = np.empty(2 * half, np.float32), np.empty(2 * half, np.float32)
        for block in range(first, last):
            left, right = 2 * half * block, 2 * half * block + half
            for group in range(groups):
                for i in range(2 * half):
                    factor[i], offset[i] = factors[group, left + i], offsets[group, left + i]
                for k in range(group * size, (group + 1) * size):
                    for i in range(half):
                        out[k, left + i] = _store(out, _low(codes[block, k, i]) * factor[i] + offset[i])
                    for i in range(half):
                        exact = _high(codes[block, k, i]) * factor[half + i] + offset[half + i]
                        out[k, right + i] = _store(out, exact)
                if twice:
                    for k in range(group * size, (group + 1) * size):
                        for i in range(half):
                            exact = _low(codes[block, k, i]) * factor[i] + offset[i]
                            out[inputs + k, left + i] = _store(out, exact - _load(_store(out, exact)))
                        for i in range(half):
                            exact = _high(codes[block, k, i]) * factor[half + i] + offset[half + i]
                            out[inputs + k, right + i] = _store(out, exact - _load(_store(out, exact)))

    return unpack


_UNPACK = {half: _unpack_by(half) for half in (32, 16)}  # AVX-512's, AVX2's


def unpack(codes: Any, factors: Any, offsets: Any, first: int, last: int, out: Any) -> None:
    """Blocks `first` to `last` of 4-bit weights in the layout of torch's CPU kernel, transposed and dequantized.

    codes uint8 [n/b, k, b/2]: of a block of b outputs, the first half's in the low nibbles, the others' in the high
    ones; factors and offsets fp32 [k/g, n] → out [k, n], each code * factor + offset. Where out is [2 k, n], its lower
    half is what rounding to its type took from the upper one.
    """
    _UNPACK[codes.shape[2]](codes, factors, offsets, first, last, out)
