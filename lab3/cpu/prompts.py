"""Attention of a prompt's tokens over the cache, in tiles: what a token does not see is not computed.

Each token of a head is computed in one order, whatever comes with it: a request gets the same bits alone and among
others. Everything is fp32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lab3.cpu.compiled import FAST, ZERO, compiled, exp, load, store
from lab3.cpu.kernels import read_tokens
from lab3.cpu.tiles import BLOCK, FLOATS, LANES, floats

_LEAST = np.float32(-3e38)


def padded(size: int) -> int:
    """`size` in whole blocks, as the arrays here have tokens and a head's numbers."""
    return -(-size // BLOCK) * BLOCK


def pieces(tokens: int, heads: int) -> int:
    """How many pieces `attend` has for so many new tokens."""
    return -(-tokens // FLOATS) * heads


@compiled(fastmath=FAST)
def read(
    cache: Any, scales_zeros: Any, blocks: Any, length: int, d: int, across: bool, first: int, last: int, out: Any
) -> None:
    """The heads `first` to `last` of a sequence's first `length` tokens as fp32.

    cache, scales and blocks as in `kernels.attend` → out [heads, d', length'] if `across`, else [heads, length', d'];
    d' and length' are `padded`, and what is there too much is not written.
    """
    size = cache.shape[1]
    tokens = np.empty((min(size, length), d), np.float32)
    for head in range(first, last):
        for begin in range(0, length, size):
            count = min(size, length - begin)
            if across:
                read_tokens(cache, scales_zeros, blocks[begin // size], count, head, d, tokens)
                for i in range(d):
                    for number in range(count):
                        out[head, i, begin + number] = tokens[number, i]
            else:
                read_tokens(cache, scales_zeros, blocks[begin // size], count, head, d, out[head, begin:])


@compiled(fastmath=FAST, error_model="numpy")
def attend(query: Any, keys: Any, values: Any, before: int, scale: float, first: int, last: int, out: Any) -> None:
    """Causal attention of new tokens, which `before` others precede; by the pieces `first` to `last` of all `pieces`.

    query [tokens, heads, d], keys [kv_heads, d', length'] and values [kv_heads, length', d_v'] as `read` gives them
    → out [tokens, heads, d_v].
    """
    tokens, heads, d = query.shape
    kv_heads, _, width = keys.shape
    group, d_v, tiles = heads // kv_heads, out.shape[2], -(-tokens // FLOATS)
    rows, scores = np.empty((FLOATS, d), np.float32), np.empty((FLOATS, width), np.float32)
    sums, totals = np.empty((FLOATS, values.shape[2]), np.float32), np.empty(FLOATS, np.float32)
    for piece in range(first, last):
        kv_head, place = piece // (tiles * group), piece % (tiles * group)
        turn, head = place // group, kv_head * group + place % group
        # From both ends in turn: the later a token, the more it sees, and all parts shall take equally long.
        start = FLOATS * (turn // 2 if turn % 2 == 0 else tiles - 1 - turn // 2)
        count = min(FLOATS, tokens - start)
        seen = before + start + count
        for r in range(count):
            for i in range(d):
                rows[r, i] = load(query[start + r, head, i]) * np.float32(scale)
        key, step = keys.ctypes.data + 4 * kv_head * keys.shape[1] * width, 4 * width
        for column in range(0, seen, BLOCK):
            floats(count, rows.ctypes.data, 4 * d, key + 4 * column, step, d, scores.ctypes.data + 4 * column, step)
        for r in range(count):
            totals[r] = _softmax(scores[r], seen - count + r + 1, seen)
        value, step = values.ctypes.data + 4 * kv_head * width * values.shape[2], 4 * values.shape[2]
        for column in range(0, d_v, BLOCK):
            to = sums.ctypes.data + 4 * column
            floats(count, scores.ctypes.data, 4 * width, value + 4 * column, step, seen, to, step)
        for r in range(count):
            for i in range(d_v):
                out[start + r, head, i] = store(out, sums[r, i] / totals[r])


@compiled(fastmath=FAST)
def _softmax(scores: Any, own: int, end: int) -> Any:
    """The first `own` scores as e to what they are below the largest, those up to `end` as 0 → their sum."""
    whole = -(-own // LANES) * LANES
    for i in range(own, whole):
        scores[i] = _LEAST
    lanes = np.full(LANES, _LEAST)
    for start in range(0, whole, LANES):
        for j in range(LANES):
            score = scores[start + j]
            lanes[j] = score if score > lanes[j] else lanes[j]
    most, total = lanes[0], ZERO
    for j in range(1, LANES):
        most = max(most, lanes[j])
    for i in range(own):
        scores[i] = exp(scores[i] - most)
    for i in range(own, end):
        scores[i] = ZERO
    for i in range(own):
        total += scores[i]
    return total
