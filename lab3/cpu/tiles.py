"""The inner loops of products and attention, written in LLVM's own vectors of sixteen numbers: what is compiled from
loops over arrays keeps its sums in memory. LLVM cuts the vectors to what the processor has.

What they work on is told by its address, and steps are in bytes. numba frees an array after the last place that names
it, whoever still has its address: `array.ctypes.data` is taken where it is used, or the array is named after that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.core.errors import TypingError
from numba.extending import intrinsic

from lab3.cpu.compiled import compiled

BLOCK = 64  # outputs of a tile, which lie together in the layout of 4-bit weights
LANES = 16
FLOATS, DOTS = 4, 8  # rows that `floats` and `dots` take at most, which have a register for each sum
_I8, _I16, _I32, _I64, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_I32, LANES)
_BYTES = ir.VectorType(_I8, LANES)
_NONE = ir.Constant(_FLOATS, [0.0] * LANES)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def tile_of_codes(_: Any, rows: Any, x: Any, x_step: Any, codes: Any, inputs: Any, sums: Any) -> Any:
    """`rows` (a literal) rows of x times the codes 0 to 15 of a block of outputs → sums fp32 [rows, BLOCK].

    Addresses and steps in bytes: x fp32 [rows, inputs], a row each `x_step`; codes [inputs, BLOCK / 2].
    """
    count = rows.literal_value
    parts = BLOCK // LANES

    def generate(_: Any, builder: ir.IRBuilder, __: Any, arguments: Sequence[Any]) -> Any:
        _, x, x_step, codes, inputs, sums = arguments

        def step(i: Any, totals: list[Any]) -> list[Any]:
            weights = _codes_of_block(builder, codes, i)
            factors = [_spread(builder, _load(builder, _at(builder, x, x_step, r, i, 4), _FLOAT)) for r in range(count)]
            pairs = [(factor, weight) for factor in factors for weight in weights]
            return [_multiply_add(builder, *pair, total) for pair, total in zip(pairs, totals, strict=True)]

        totals = _loop(builder, inputs, 1, count * parts, step)
        for number, total in enumerate(totals):
            _save(builder, total, builder.add(sums, _I64(4 * LANES * number)))

    return types.void(rows, *[types.intp] * 5), generate


@intrinsic  # type: ignore[untyped-decorator]
def unpack(_: Any, codes: Any, inputs: Any, factors: Any, offsets: Any, out: Any, out_step: Any) -> Any:
    """The codes of a block of outputs, times the factors and plus the offsets of its outputs → fp32 [inputs, BLOCK].

    Addresses and steps in bytes: codes [inputs, BLOCK / 2], factors and offsets fp32 [BLOCK], out a row each
    `out_step`.
    """

    def generate(_: Any, builder: ir.IRBuilder, __: Any, arguments: Sequence[Any]) -> Any:
        codes, inputs, factors, offsets, out, out_step = arguments
        places = [_I64(4 * LANES * part) for part in range(BLOCK // LANES)]
        of_outputs = [
            [_load(builder, builder.add(each, place), _FLOATS) for place in places] for each in (factors, offsets)
        ]

        def step(i: Any, _: list[Any]) -> list[Any]:
            row = builder.add(out, builder.mul(i, out_step))
            parts = zip(_codes_of_block(builder, codes, i), *of_outputs, places, strict=True)
            for code, factor, offset, place in parts:
                _save(builder, _multiply_add(builder, code, factor, offset), builder.add(row, place))
            return []

        _loop(builder, inputs, 1, 0, step)

    return types.void(*[types.intp] * 6), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def tile_of_floats(
    _: Any, rows: Any, x: Any, x_step: Any, matrix: Any, step: Any, inputs: Any, out: Any, out_step: Any
) -> Any:
    """`rows` (a literal) rows of x times BLOCK columns of a matrix → out [rows, BLOCK], all fp32.

    Addresses and steps in bytes: x [rows, inputs], a row each `x_step`; the matrix [inputs, BLOCK], each `step`; out
    each `out_step`.
    """
    count = rows.literal_value

    def generate(_: Any, builder: ir.IRBuilder, __: Any, arguments: Sequence[Any]) -> Any:
        _, x, x_step, matrix, step, inputs, out, out_step = arguments
        places = [_I64(4 * LANES * part) for part in range(BLOCK // LANES)]

        def body(i: Any, totals: list[Any]) -> list[Any]:
            row = builder.add(matrix, builder.mul(i, step))
            weights = [_load(builder, builder.add(row, place), _FLOATS) for place in places]
            factors = [_spread(builder, _load(builder, _at(builder, x, x_step, r, i, 4), _FLOAT)) for r in range(count)]
            pairs = [(factor, weight) for factor in factors for weight in weights]
            return [_multiply_add(builder, *pair, total) for pair, total in zip(pairs, totals, strict=True)]

        totals = iter(_loop(builder, inputs, 1, count * len(places), body))
        for r in range(count):
            for place in places:
                _save(builder, next(totals), builder.add(_at(builder, out, out_step, r, _I64(0), 4), place))

    return types.void(rows, *[types.intp] * 7), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def tile_of_dots(_: Any, rows: Any, x: Any, x_step: Any, weight: Any, start: Any, inputs: Any, sums: Any) -> Any:
    """`rows` (a literal) rows of x times a row of a weight, over inputs // 16 * 16 inputs → sums fp32 [rows].

    One row of the weight at a time, so that it is read from memory in one stream, which processors read far ahead.
    All are addresses but `weight`, whose type tells what lies at `start`: x fp32 [rows, inputs], a row each `x_step`.
    """
    if getattr(weight, "layout", None) != "C":
        raise TypingError("a weight in one piece is wanted")
    size, widened = _numbers(weight)
    count = rows.literal_value

    def generate(_: Any, builder: ir.IRBuilder, __: Any, arguments: Sequence[Any]) -> Any:
        _, x, x_step, _, start, inputs, sums = arguments

        def step(i: Any, totals: list[Any]) -> list[Any]:
            weights = widened(builder, builder.add(start, builder.mul(i, _I64(size))))
            factors = [_load(builder, _at(builder, x, x_step, row, i, 4), _FLOATS) for row in range(count)]
            return [_multiply_add(builder, each, weights, total) for each, total in zip(factors, totals, strict=True)]

        for number, total in enumerate(_loop(builder, _whole(builder, inputs), LANES, count, step)):
            _save(builder, _sum(builder, total), builder.add(sums, _I64(4 * number)))

    return types.void(rows, types.intp, types.intp, weight, *[types.intp] * 3), generate


@compiled()
def floats(rows: int, x: Any, x_step: int, matrix: Any, step: int, inputs: int, out: Any, out_step: int) -> None:
    """`tile_of_floats` for `FLOATS` rows at most."""
    if rows == 4:
        tile_of_floats(4, x, x_step, matrix, step, inputs, out, out_step)
    elif rows == 3:
        tile_of_floats(3, x, x_step, matrix, step, inputs, out, out_step)
    elif rows == 2:
        tile_of_floats(2, x, x_step, matrix, step, inputs, out, out_step)
    else:
        tile_of_floats(1, x, x_step, matrix, step, inputs, out, out_step)


@compiled()
def dots(rows: int, x: Any, x_step: int, weight: Any, start: Any, inputs: int, sums: Any) -> None:
    """`tile_of_dots` for `DOTS` rows at most."""
    if rows == 8:
        tile_of_dots(8, x, x_step, weight, start, inputs, sums)
        return
    done = 0
    if rows >= 4:
        tile_of_dots(4, x, x_step, weight, start, inputs, sums)
        done = 4
    at, to = x + done * x_step, sums + 4 * done
    if rows - done == 3:
        tile_of_dots(3, at, x_step, weight, start, inputs, to)
    elif rows - done == 2:
        tile_of_dots(2, at, x_step, weight, start, inputs, to)
    elif rows - done == 1:
        tile_of_dots(1, at, x_step, weight, start, inputs, to)


@intrinsic  # type: ignore[untyped-decorator]
def widen(_: Any, array: Any, start: Any, count: Any, out: Any) -> Any:
    """count // 16 * 16 numbers of the type of `array`'s, which lie at `start` → fp32 at `out`."""
    size, widened = _numbers(array)

    def generate(_: Any, builder: ir.IRBuilder, __: Any, arguments: Sequence[Any]) -> Any:
        _, start, count, out = arguments

        def step(i: Any, _: list[Any]) -> list[Any]:
            numbers = widened(builder, builder.add(start, builder.mul(i, _I64(size))))
            _save(builder, numbers, builder.add(out, builder.mul(i, _I64(4))))
            return []

        _loop(builder, _whole(builder, count), LANES, 0, step)

    return types.void(array, *[types.intp] * 3), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def widen_codes(_: Any, bits: Any, codes: Any, count: Any, zero: Any, scale: Any, out: Any) -> Any:
    """The codes in count // 16 * 16 bytes, (code - zero) * scale → fp32 at `out`.

    `bits` (a literal): 8, or 4, of which each byte has one in its low half and one for `count` places further in its
    high half.
    """
    four = bits.literal_value == 4

    def generate(_: Any, builder: ir.IRBuilder, __: Any, arguments: Sequence[Any]) -> Any:
        _, codes, count, zero, scale, out = arguments
        zeros, scales = _spread(builder, zero), _spread(builder, scale)
        further = builder.mul(count, _I64(4))

        def step(i: Any, _: list[Any]) -> list[Any]:
            read, to = _load(builder, builder.add(codes, i), _BYTES), builder.add(out, builder.mul(i, _I64(4)))
            for number, code in enumerate(_nibbles(builder, read) if four else [builder.zext(read, _INTS)]):
                value = builder.fmul(builder.fsub(builder.sitofp(code, _FLOATS), zeros), scales)
                _save(builder, value, builder.add(to, further) if number else to)
            return []

        _loop(builder, _whole(builder, count), LANES, 0, step)

    return types.void(bits, types.intp, types.intp, types.float32, types.float32, types.intp), generate


def _numbers(array: Any) -> tuple[int, Callable[[ir.IRBuilder, Any], Any]]:
    """The bytes of an element of `array` (`lab3.cpu.compiled.stored`), and how sixteen of them are read as fp32."""
    if getattr(array, "dtype", None) not in (types.uint16, types.int16, types.float32):
        raise TypingError("an array of fp32, fp16 or bf16 is wanted")
    if array.dtype == types.float32:
        return 4, lambda builder, at: _load(builder, at, _FLOATS)
    if array.dtype == types.uint16:
        halves = ir.VectorType(ir.HalfType(), LANES)
        return 2, lambda builder, at: builder.fpext(_load(builder, at, halves), _FLOATS)

    def of_bf16(builder: ir.IRBuilder, at: Any) -> Any:
        bits = builder.zext(_load(builder, at, ir.VectorType(_I16, LANES)), _INTS)
        return builder.bitcast(builder.shl(bits, ir.Constant(_INTS, [16] * LANES)), _FLOATS)

    return 2, of_bf16


def _codes_of_block(builder: ir.IRBuilder, codes: Any, i: Any) -> list[Any]:
    """The codes of input i for a block's outputs as vectors of fp32; `codes` is the address of [inputs, BLOCK / 2]."""
    start = builder.add(codes, builder.mul(i, _I64(BLOCK // 2)))
    low_ones, high_ones = [], []
    for part in range(0, BLOCK // 2, LANES):  # one after the other: LLVM keeps all at once where registers are few
        low, high = _nibbles(builder, _load(builder, builder.add(start, _I64(part)), _BYTES))
        low_ones.append(builder.sitofp(low, _FLOATS))
        high_ones.append(builder.sitofp(high, _FLOATS))
    return [*low_ones, *high_ones]


def _nibbles(builder: ir.IRBuilder, read: Any) -> tuple[Any, Any]:
    """The low and the high halves of sixteen bytes, as integers of 32 bits."""
    wide = builder.zext(read, _INTS)
    low = builder.and_(wide, ir.Constant(_INTS, [15] * LANES))
    return low, builder.lshr(wide, ir.Constant(_INTS, [4] * LANES))


def _whole(builder: ir.IRBuilder, count: Any) -> Any:
    """What of `count` fills vectors."""
    return builder.and_(count, _I64(-LANES))


def _loop(
    builder: ir.IRBuilder, end: Any, step: int, registers: int, body: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """`registers` vectors, zero at first, that `body(i, vectors)` gives anew for i = 0, step, … below `end`."""
    before = builder.block
    inside, check, after = (builder.append_basic_block(name) for name in ("inside", "check", "after"))
    builder.branch(check)
    builder.position_at_end(check)
    i = builder.phi(_I64)
    vectors = [builder.phi(_FLOATS) for _ in range(registers)]
    i.add_incoming(_I64(0), before)
    for vector in vectors:
        vector.add_incoming(_NONE, before)
    builder.cbranch(builder.icmp_signed("<", i, end), inside, after)
    builder.position_at_end(inside)
    for vector, new in zip(vectors, body(i, vectors), strict=True):
        vector.add_incoming(new, inside)
    i.add_incoming(builder.add(i, _I64(step)), inside)
    builder.branch(check)
    builder.position_at_end(after)
    return vectors


def _at(builder: ir.IRBuilder, base: Any, step: Any, row: int, i: Any, size: int) -> Any:
    return builder.add(builder.add(base, builder.mul(step, _I64(row))), builder.mul(i, _I64(size)))


def _load(builder: ir.IRBuilder, address: Any, kind: Any) -> Any:
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = 1
    return loaded


def _save(builder: ir.IRBuilder, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1


def _spread(builder: ir.IRBuilder, number: Any) -> Any:
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), number, _I32(0))
    return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _multiply_add(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return builder.call(get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32"), [a, b, c])


def _sum(builder: ir.IRBuilder, vector: Any) -> Any:
    kind = ir.FunctionType(_FLOAT, [_FLOAT, _FLOATS])
    function = get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
    return builder.call(function, [ir.Constant(_FLOAT, 0.0), vector], fastmath=("reassoc",))
