"""The small operators of a step, each one pass over its data: what torch does in ten calls is one call here.

A decoding step of a small model is thousands of torch operators on a few hundred numbers each, and calling them costs
more than computing them.

Each row of an input is computed by itself and in one order, so that a request gets the same numbers alone and among
others. Sums are fp32. A loop that adds up stores nothing: LLVM compiles a loop that does both twice, with sixteen sums
and with one, and takes the one or the other by where the arrays happen to lie.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from lab3.cpu.compiled import FAST, HALF, ONE, ZERO, byte, compiled, exp, high, load, low, store, truncated
from lab3.cpu.tiles import BLOCK, DOTS, FLOATS, LANES, dots, floats, widen, widen_codes

# --- between the matrix products ---------------------------------------------------------------------------------


@compiled(fastmath=FAST, error_model="numpy")
def rms_norm(x: Any, weight: Any, eps: float, out: Any) -> None:
    """x [rows, n] / sqrt(mean(x²) + eps) * weight [n] → out [rows, n]."""
    rows, n = x.shape
    for row in range(rows):
        squares = ZERO
        for i in range(n):
            squares += load(x[row, i]) * load(x[row, i])
        factor = ONE / np.sqrt(squares / np.float32(n) + np.float32(eps))
        for i in range(n):
            out[row, i] = store(out, load(x[row, i]) * factor * load(weight[i]))


@compiled(fastmath=FAST, error_model="numpy")
def add_rms_norm(x: Any, residual: Any, weight: Any, eps: float, total: Any, out: Any) -> None:
    """total = x + residual, rounded as it is stored; out = its `rms_norm`. All [rows, n], weight [n]."""
    rows, n = x.shape
    for row in range(rows):
        for i in range(n):
            total[row, i] = store(total, load(x[row, i]) + load(residual[row, i]))
        squares = ZERO
        for i in range(n):
            squares += load(total[row, i]) * load(total[row, i])
        factor = ONE / np.sqrt(squares / np.float32(n) + np.float32(eps))
        for i in range(n):
            out[row, i] = store(out, load(total[row, i]) * factor * load(weight[i]))


@compiled()
def add(to: Any, bias: Any) -> None:
    """to += bias, both [n]."""
    for i in range(to.shape[0]):
        to[i] = store(to, load(to[i]) + load(bias[i]))


@compiled(fastmath=FAST, error_model="numpy")
def silu_and_mul(gate_up: Any, out: Any) -> None:
    """silu(gate) * up, where gate_up [rows, 2 n] holds both one after the other → out [rows, n]."""
    rows, n = out.shape
    for row in range(rows):
        for i in range(n):
            gate = load(gate_up[row, i])
            out[row, i] = store(out, gate / (ONE + exp(-gate)) * load(gate_up[row, n + i]))


@compiled(fastmath=FAST)
def rotate(states: Any, cos: Any, sin: Any) -> None:
    """Rotary embedding in place: states [tokens, heads, d], cos and sin [tokens, d], halves rotated into each other."""
    tokens, heads, d = states.shape
    half = d // 2
    cosines, sines, turned = np.empty(d, np.float32), np.empty(d, np.float32), np.empty(d, np.float32)
    for token in range(tokens):
        for i in range(d):
            cosines[i], sines[i] = load(cos[token, i]), load(sin[token, i])
        for head in range(heads):
            for i in range(half):
                first, second = load(states[token, head, i]), load(states[token, head, i + half])
                turned[i] = first * cosines[i] - second * sines[i]
                turned[i + half] = second * cosines[i + half] + first * sines[i + half]
            for i in range(d):
                states[token, head, i] = store(states, turned[i])


# --- the KV cache ------------------------------------------------------------------------------------------------


@compiled()
def _extremes(values: Any) -> Any:
    """The smallest and the largest, looked for in 16 places at once."""
    n = values.shape[0]
    lows, highs = np.empty(16, np.float32), np.empty(16, np.float32)
    for j in range(16):
        lows[j] = highs[j] = values[min(j, n - 1)]
    for start in range(16, n // 16 * 16, 16):
        for j in range(16):
            value = values[start + j]
            lows[j] = value if value < lows[j] else lows[j]
            highs[j] = value if value > highs[j] else highs[j]
    low, high = lows[0], highs[0]
    for j in range(1, 16):
        low, high = min(low, lows[j]), max(high, highs[j])
    for i in range(max(16, n // 16 * 16), n):
        low, high = min(low, values[i]), max(high, values[i])
    return low, high


@compiled(error_model="numpy")  # the formula's roundings, each of them: nothing is fast here
def _quantize(new: Any, cache: Any, scale_zero: Any) -> None:
    """new [d] as `lab3.cpu.kv_quant` says → cache uint8 [d] for 8 bits, [d/2] for 4; scale_zero [2]."""
    d = new.shape[0]
    four = cache.shape[0] * 2 == d
    top = np.float32(15 if four else 255)
    values = np.empty(d, np.float32)
    for i in range(d):
        values[i] = load(new[i])
    low, high = _extremes(values)
    scale = (high - low) / top
    if scale == ZERO:
        scale = ONE
    zero = -low / scale
    codes = np.empty(d, np.uint8)
    for i in range(d):
        code = values[i] / scale + zero + HALF
        codes[i] = truncated(min(max(code, ZERO), top + HALF))
    if four:
        for i in range(d // 2):
            cache[i] = codes[i] | (codes[i + d // 2] << np.uint8(4))
    else:
        for i in range(d):
            cache[i] = codes[i]
    scale_zero[0] = store(scale_zero, scale)
    scale_zero[1] = store(scale_zero, zero)


@compiled()
def _copy(new: Any, cache: Any, _: Any) -> None:
    for i in range(new.shape[0]):
        cache[i] = new[i]


def _write(new: Any, cache: Any, scale_zero: Any) -> None:
    """One head of one token to its place."""


@overload(_write, strict=False)  # type: ignore[untyped-decorator]
def _write_overload(new: Any, cache: Any, scale_zero: Any) -> Any:
    if cache.dtype == types.uint8:
        return lambda new, cache, scale_zero: _quantize(new, cache, scale_zero)
    return lambda new, cache, scale_zero: _copy(new, cache, scale_zero)


@compiled()
def write(new: Any, blocks: Any, offsets: Any, cache: Any, scales_zeros: Any, first: int, last: int) -> None:
    """The heads `first` to `last` of new [tokens, heads, d] to their places [tokens] in the cache.

    cache [blocks, block_size, heads, d], uint8 for 8 bits and with d/2 for 4, which have scales_zeros [blocks,
    block_size, heads, 2]. A cache in 16 or 32 bits has none: any array of four axes stands for them.
    """
    for token in range(new.shape[0]):
        block, offset = blocks[token], offsets[token]
        for head in range(first, last):
            _write(new[token, head], cache[block, offset, head], scales_zeros[block, offset, head])


def read_tokens(cache: Any, scales_zeros: Any, block: Any, count: Any, head: Any, d: Any, out: Any) -> None:
    """One head of the first `count` tokens of a block, `d` numbers of each, as fp32 → out [tokens, d or more]."""


@overload(read_tokens, strict=False)  # type: ignore[untyped-decorator]
def _read_overload(cache: Any, scales_zeros: Any, block: Any, count: Any, head: Any, d: Any, out: Any) -> Any:
    def plain(cache: Any, scales_zeros: Any, block: Any, count: Any, head: Any, d: Any, out: Any) -> None:
        source = cache.ctypes.data + block * cache.strides[0] + head * cache.strides[2]
        for token in range(count):
            widen(cache, source + token * cache.strides[1], d, out.ctypes.data + token * out.strides[0])
            for i in range(d // LANES * LANES, d):
                out[token, i] = load(cache[block, token, head, i])

    def quantized(cache: Any, scales_zeros: Any, block: Any, count: Any, head: Any, d: Any, out: Any) -> None:
        size = cache.shape[3]
        source = cache.ctypes.data + block * cache.strides[0] + head * cache.strides[2]
        for token in range(count):
            scale = load(scales_zeros[block, token, head, 0])
            zero = load(scales_zeros[block, token, head, 1])
            codes, to = source + token * cache.strides[1], out.ctypes.data + token * out.strides[0]
            if size == d:
                widen_codes(8, codes, size, zero, scale, to)
                for i in range(size // LANES * LANES, size):
                    out[token, i] = (byte(cache[block, token, head, i]) - zero) * scale
            else:
                widen_codes(4, codes, size, zero, scale, to)
                for i in range(size // LANES * LANES, size):
                    out[token, i] = (low(cache[block, token, head, i]) - zero) * scale
                    out[token, size + i] = (high(cache[block, token, head, i]) - zero) * scale

    return quantized if cache.dtype == types.uint8 else plain


@compiled(fastmath=FAST, error_model="numpy")
def attend(
    query: Any,
    k_cache: Any,
    v_cache: Any,
    k_scales: Any,
    v_scales: Any,
    blocks: Any,
    size: int,
    length: int,
    scale: float,
    first: int,
    last: int,
    out: Any,
) -> None:
    """Attention of one token, the last of its sequence of `length`, straight from the cache, which has blocks of `size`
    tokens; by the heads `first` to `last` of the cache, each of which is read once for its group of queries.

    query [heads, d], blocks [n] the sequence's, caches and scales as in `write` → out [heads, d_v].
    """
    heads, d = query.shape
    group, d_v = heads // k_cache.shape[2], out.shape[1]
    width, width_v, tokens = -(-d // BLOCK) * BLOCK, -(-d_v // BLOCK) * BLOCK, min(size, length)
    # What fills them up is zero, so that it counts for nothing.
    queries, keys = np.zeros((group, width), np.float32), np.empty((tokens, width), np.float32)
    values, part = np.empty((tokens, width_v), np.float32), np.empty((FLOATS, width_v), np.float32)
    keys[:, d:], values[:, d_v:] = ZERO, ZERO
    weights, sums = np.empty((group, length), np.float32), np.empty((group, width_v), np.float32)
    for kv_head in range(first, last):
        for member in range(group):
            for i in range(d):
                queries[member, i] = load(query[kv_head * group + member, i]) * np.float32(scale)
            for i in range(d_v):
                sums[member, i] = ZERO
        for begin in range(0, length, size):
            count = min(size, length - begin)
            read_tokens(k_cache, k_scales, blocks[begin // size], count, kv_head, d, keys)
            for member in range(0, group, DOTS):
                at, rows = queries.ctypes.data + 4 * width * member, min(DOTS, group - member)
                for token in range(count):
                    dots(rows, at, 4 * width, keys, keys.ctypes.data + 4 * width * token, width, part.ctypes.data)
                    for row in range(rows):
                        weights[member + row, begin + token] = part[0, row]
        for member in range(group):
            most, total = weights[member, 0], ZERO
            for token in range(1, length):
                most = max(most, weights[member, token])
            for token in range(length):
                weights[member, token] = exp(weights[member, token] - most)
            for token in range(length):
                total += weights[member, token]
            for token in range(length):
                weights[member, token] /= total
        for begin in range(0, length, size):
            count = min(size, length - begin)
            read_tokens(v_cache, v_scales, blocks[begin // size], count, kv_head, d_v, values)
            for member in range(0, group, FLOATS):
                at, rows = weights.ctypes.data + 4 * (length * member + begin), min(FLOATS, group - member)
                for column in range(0, d_v, BLOCK):
                    value, to = values.ctypes.data + 4 * column, part.ctypes.data + 4 * column
                    floats(rows, at, 4 * length, value, 4 * width_v, count, to, 4 * width_v)
                for row in range(rows):
                    for i in range(d_v):
                        sums[member + row, i] += part[row, i]
        for member in range(group):
            for i in range(d_v):
                out[kv_head * group + member, i] = store(out, sums[member, i])
