"""Matrix products with weights of 32, 16 and 4 bits, which become fp32 in registers, or for prompts in a core's own
cache, and are read from memory once.

Each row of the result is computed in one order, whatever the number of rows: a request gets the same bits alone and
among others. Products and sums are fp32. The inner loops are in `lab3.cpu.tiles`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab3.cpu.compiled import FAST, ZERO, compiled, load, store
from lab3.cpu.tiles import BLOCK, DOTS, LANES, dots, tile_of_codes, tile_of_floats, unpack

_ROWS = 4  # of a tile
_PROMPT_ROWS = 6  # of a tile whose weights are fp32 already
_DEPTH = 2048  # inputs of a block whose weights are fp32 at a time: 512 KiB, which stay in a core's own cache


@compiled(fastmath=FAST)
def times_plain(x: Any, weight: Any, first: int, last: int, out: Any) -> None:
    """x [rows, k] times weight [n, k] of 16 or 32 bits → columns `first` to `last` of out [rows, n]."""
    rows, k = x.shape
    wide, sums = np.empty((rows, k), np.float32), np.empty(DOTS, np.float32)
    for row in range(rows):
        for i in range(k):
            wide[row, i] = load(x[row, i])
    at, step, to = wide.ctypes.data, 4 * k, sums.ctypes.data
    for column in range(first, last):
        start = weight.ctypes.data + weight.strides[0] * column
        for row in range(0, rows, DOTS):
            count = min(DOTS, rows - row)
            dots(count, at + row * step, step, weight, start, k, to)
            for r in range(count):
                product = sums[r]
                for i in range(k // LANES * LANES, k):
                    product += wide[row + r, i] * load(weight[column, i])
                out[row + r, column] = store(out, product)


@compiled(fastmath=FAST)
def times_4_bits(x: Any, codes: Any, scales: Any, zeros: Any, first: int, last: int, out: Any) -> None:
    """x [rows, k] times 4-bit weights → the outputs of the blocks `first` to `last` in out [rows, n].

    A weight is (code - zero) * scale. codes uint8 [blocks, k, BLOCK / 2]: the first half of a block's outputs in the
    low nibbles, the others in the high ones; scales [blocks, groups, BLOCK] and zeros uint8 [blocks, groups, BLOCK],
    in the order in which they are read, as the codes are.
    """
    rows, k = x.shape
    groups, n = scales.shape[1], out.shape[1]
    size = k // groups
    wide, totals = np.empty((rows, k), np.float32), np.empty((rows, groups), np.float32)
    for row in range(rows):
        for i in range(k):
            wide[row, i] = load(x[row, i])
        for group in range(groups):
            total = ZERO
            for i in range(group * size, (group + 1) * size):
                total += wide[row, i]
            totals[row, group] = total
    sums, result = np.empty((_ROWS, BLOCK), np.float32), np.empty((_ROWS, BLOCK), np.float32)
    scale, zero = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    step, to = 4 * k, sums.ctypes.data
    for block in range(first, last):
        column = block * BLOCK
        for row in range(0, rows, _ROWS):
            count = min(_ROWS, rows - row)
            for r in range(count):
                for i in range(BLOCK):
                    result[r, i] = ZERO
            for group in range(groups):
                source = wide.ctypes.data + row * step + 4 * group * size
                start = codes.ctypes.data + (block * k + group * size) * (BLOCK // 2)
                if count == 4:
                    tile_of_codes(4, source, step, start, size, to)
                elif count == 3:
                    tile_of_codes(3, source, step, start, size, to)
                elif count == 2:
                    tile_of_codes(2, source, step, start, size, to)
                else:
                    tile_of_codes(1, source, step, start, size, to)
                for i in range(BLOCK):
                    scale[i], zero[i] = load(scales[block, group, i]), np.float32(zeros[block, group, i])
                for r in range(count):
                    total = totals[row + r, group]
                    for i in range(BLOCK):
                        result[r, i] += scale[i] * (sums[r, i] - zero[i] * total)
            for r in range(count):
                for i in range(min(BLOCK, n - column)):
                    out[row + r, column + i] = store(out, result[r, i])


@compiled(fastmath=FAST)
def prompt_times_4_bits(
    x: Any, codes: Any, scales: Any, zeros: Any, parts: int, first: int, last: int, out: Any
) -> None:
    """As `times_4_bits` for the many rows of prompts, x being fp32: a block's weights are made fp32 once for all rows.

    Each block's rows are cut into `parts`; this computes those from `first` to `last` of all blocks' parts.
    """
    rows, k = x.shape
    n, size = out.shape[1], k // scales.shape[1]
    depth = min(k, max(1, _DEPTH // size) * size)
    weights = np.empty((depth, BLOCK), np.float32)
    factor, offset = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    sums, more = np.empty((rows, BLOCK), np.float32), np.empty((_PROMPT_ROWS, BLOCK), np.float32)
    step = 4 * BLOCK
    for block in range(first // parts, -(-last // parts)):
        begin = rows * max(0, first - block * parts) // parts
        end = rows * min(parts, last - block * parts) // parts
        for start in range(0, k, depth):
            inputs = min(depth, k - start)
            for group in range(start // size, (start + inputs) // size):
                for i in range(BLOCK):
                    factor[i] = load(scales[block, group, i])
                    offset[i] = -np.float32(zeros[block, group, i]) * factor[i]
                source = codes.ctypes.data + (block * k + group * size) * (BLOCK // 2)
                to = weights.ctypes.data + (group * size - start) * step
                unpack(source, size, factor.ctypes.data, offset.ctypes.data, to, step)
            for row in range(begin, end, _PROMPT_ROWS):
                count, at = min(_PROMPT_ROWS, end - row), x.ctypes.data + 4 * (row * k + start)
                if start == 0:
                    _prompt_tile(count, at, 4 * k, weights.ctypes.data, inputs, sums.ctypes.data + row * step)
                else:
                    _prompt_tile(count, at, 4 * k, weights.ctypes.data, inputs, more.ctypes.data)
                    for r in range(count):
                        for i in range(BLOCK):
                            sums[row + r, i] += more[r, i]
        for row in range(begin, end):
            for i in range(min(BLOCK, n - block * BLOCK)):
                out[row, block * BLOCK + i] = store(out, sums[row, i])


@compiled()
def _prompt_tile(count: int, x: Any, x_step: int, weights: Any, inputs: int, sums: Any) -> None:
    """At most `_PROMPT_ROWS` rows of x times `weights` [inputs, BLOCK] → `sums`; the rest as pairs and a single one."""
    if count == _PROMPT_ROWS:
        tile_of_floats(_PROMPT_ROWS, x, x_step, weights, 4 * BLOCK, inputs, sums, 4 * BLOCK)
    else:
        for row in range(0, count - 1, 2):
            tile_of_floats(2, x + row * x_step, x_step, weights, 4 * BLOCK, inputs, sums + row * 4 * BLOCK, 4 * BLOCK)
        if count % 2:
            at, to = x + (count - 1) * x_step, sums + (count - 1) * 4 * BLOCK
            tile_of_floats(1, at, x_step, weights, 4 * BLOCK, inputs, to, 4 * BLOCK)


def blocks_of_groups(numbers: Tensor) -> Tensor:
    """What each group of inputs has for each output, [groups, n], as `times_4_bits` reads it: [blocks, groups, BLOCK],
    filled up with 0."""
    whole = torch.nn.functional.pad(numbers, (0, -numbers.size(1) % BLOCK))
    return whole.view(len(numbers), -1, BLOCK).transpose(0, 1).contiguous()


def blocks_of_codes(codes: Tensor) -> Tensor:
    """Codes 0 to 15 [k, n] in the layout that `times_4_bits` reads: uint8 [blocks, k, BLOCK / 2], filled up with 0."""
    k, n = codes.shape
    whole = torch.nn.functional.pad(codes.to(torch.uint8), (0, -n % BLOCK))
    first, second = whole.view(k, -1, 2, BLOCK // 2).permute(2, 1, 0, 3)
    return (first | (second << 4)).contiguous()
