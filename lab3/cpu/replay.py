"""A decoding step as one call: the operators that `lab3.cpu.graph` recorded, on as many threads as come to help.

Every thread runs through the same operators in the same order. Of each it takes tasks (some outputs, a row, a head of
the cache) until none is left, and goes on when all are done. So nobody waits for a thread that has not come yet, and
no number depends on who computed it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from lab3.cpu import kernels, products
from lab3.cpu.compiled import compiled
from lab3.cpu.tiles import BLOCK

NORM, ADD_NORM, TIMES_4, TIMES_16, ADD, SILU, ROTATE, ATTEND = range(8)
_ADDRESSES = "x second third weight scales zeros k_cache v_cache k_scales v_scales total out"
_SIZES = "rows step k n blocks groups heads kv_heads d width size span scale_span"
# One operator: its kind, how many tasks it has, and of the addresses and sizes those that `_work` reads for its kind.
OPERATOR = np.dtype(
    [(name, np.int64) for name in f"kind tasks {_ADDRESSES} {_SIZES}".split()] + [("number", np.float64)]
)
COUNTERS = 32  # of int64 for an operator: two lie in cache lines of their own
_SPINS = 1000  # looks at a counter before another process gets the core
_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _on_address(result: Any, instructions: Callable[[ir.IRBuilder, Any], Any]) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def function(_: Any, address: Any) -> Any:
        def generate(_: Any, builder: ir.IRBuilder, __: Any, arguments: Sequence[Any]) -> Any:
            return instructions(builder, arguments[0])

        return result(types.intp), generate

    return function


def _counter(builder: ir.IRBuilder, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


_add_one = _on_address(types.intp, lambda b, a: b.atomic_rmw("add", _counter(b, a), _I64(1), "seq_cst"))
_now = _on_address(types.intp, lambda b, a: b.load_atomic(_counter(b, a), "acquire", 8))
_pointer = _on_address(types.voidptr, lambda b, a: b.inttoptr(a, ir.IntType(8).as_pointer()))


@intrinsic  # type: ignore[untyped-decorator]
def _give_way(_: Any) -> Any:
    """POSIX' sched_yield."""

    def generate(_: Any, builder: ir.IRBuilder, __: Any, ___: Any) -> Any:
        return builder.call(get_or_insert_function(builder.module, ir.FunctionType(_I32, []), "sched_yield"), [])

    return types.int32(), generate


@compiled()
def replay(
    program: Any, like: Any, cache_like: Any, places: Any, offsets: Any, lengths: Any, blocks: Any, counters: Any
) -> None:
    """Run `program` [operators] of OPERATOR, whose rows are sequences of one new token each.

    `like` and `cache_like`: arrays of the activations' and the cache's types. places and offsets int64 [rows]: the
    block that each token's key and value go to, and where in it; lengths int64 [rows] tokens in the cache, the new one
    included; blocks int64 [rows, most]. counters int64 [operators, COUNTERS], zero at the step's start and shared by
    its threads.
    """
    for number in range(program.shape[0]):
        operator = program[number]
        taken = counters.ctypes.data + 8 * COUNTERS * number
        done = taken + 4 * COUNTERS
        while True:
            task = _add_one(taken)
            if task >= operator.tasks:
                break
            if operator.kind == ATTEND:
                _attend(operator, task, like, cache_like, places, offsets, lengths, blocks)
            else:
                _work(operator, task, like)
            _add_one(done)
        looks = 0
        while _now(done) < operator.tasks:
            looks += 1
            if looks % _SPINS == 0:
                _give_way()


@compiled()
def _work(o: Any, task: int, like: Any) -> None:
    """One task of the operator `o`: some outputs of a product, a row of anything else."""
    rows, k, n = o.rows, o.k, o.n
    first = 2 * task * n
    if o.kind == NORM:
        x, weight = carray(_pointer(o.x + first), (1, n), like.dtype), carray(_pointer(o.weight), n, like.dtype)
        kernels.rms_norm(x, weight, o.number, carray(_pointer(o.out + first), (1, n), like.dtype))
    elif o.kind == ADD_NORM:
        x, weight = carray(_pointer(o.x + first), (1, n), like.dtype), carray(_pointer(o.weight), n, like.dtype)
        residual = carray(_pointer(o.second + first), (1, n), like.dtype)
        total = carray(_pointer(o.total + first), (1, n), like.dtype)
        out = carray(_pointer(o.out + first), (1, n), like.dtype)
        kernels.add_rms_norm(x, residual, weight, o.number, total, out)
    elif o.kind == TIMES_4:
        x, out = carray(_pointer(o.x), (rows, k), like.dtype), carray(_pointer(o.out), (rows, n), like.dtype)
        codes = carray(_pointer(o.weight), (o.blocks, k, BLOCK // 2), np.uint8)
        scales = carray(_pointer(o.scales), (o.blocks, o.groups, BLOCK), np.uint16)
        zeros = carray(_pointer(o.zeros), (o.blocks, o.groups, BLOCK), np.uint8)
        begin, end = o.blocks * task // o.tasks, o.blocks * (task + 1) // o.tasks
        products.times_4_bits(x, codes, scales, zeros, begin, end, out)
    elif o.kind == TIMES_16:
        x, out = carray(_pointer(o.x), (rows, k), like.dtype), carray(_pointer(o.out), (rows, n), like.dtype)
        weight = carray(_pointer(o.weight), (n, k), like.dtype)
        products.times_plain(x, weight, n * task // o.tasks, n * (task + 1) // o.tasks, out)
    elif o.kind == ADD:
        to, bias = carray(_pointer(o.x + first), n, like.dtype), carray(_pointer(o.weight), n, like.dtype)
        kernels.add(to, bias)
    elif o.kind == SILU:
        gate_up = carray(_pointer(o.x + 2 * first), (1, 2 * n), like.dtype)
        kernels.silu_and_mul(gate_up, carray(_pointer(o.out + first), (1, n), like.dtype))
    elif o.kind == ROTATE:
        states = carray(_pointer(o.x + 2 * task * o.step), (1, o.heads, o.d), like.dtype)
        cos = carray(_pointer(o.second + 2 * task * o.d), (1, o.d), like.dtype)
        kernels.rotate(states, cos, carray(_pointer(o.third + 2 * task * o.d), (1, o.d), like.dtype))


@compiled()
def _attend(
    o: Any, task: int, like: Any, cache_like: Any, places: Any, offsets: Any, lengths: Any, blocks: Any
) -> None:
    """A row's query for one head of the cache, after its key and value were written there."""
    row, head = task // o.kv_heads, task % o.kv_heads
    begin = 2 * row * o.step
    query = carray(_pointer(o.x + begin), (o.heads, o.d), like.dtype)
    key = carray(_pointer(o.second + begin), (1, o.kv_heads, o.d), like.dtype)
    value = carray(_pointer(o.third + begin), (1, o.kv_heads, o.d), like.dtype)
    # From a block of one layer to its next there are other layers': as if there were more tokens in a block.
    cache, scales = (o.blocks, o.span, o.kv_heads, o.width), (o.blocks, o.scale_span, o.kv_heads, 2)
    k_cache = carray(_pointer(o.k_cache), cache, cache_like.dtype)
    v_cache = carray(_pointer(o.v_cache), cache, cache_like.dtype)
    k_scales = carray(_pointer(o.k_scales), scales, like.dtype)
    v_scales = carray(_pointer(o.v_scales), scales, like.dtype)
    place, offset = places[row : row + 1], offsets[row : row + 1]
    kernels.write(key, place, offset, k_cache, k_scales, head, head + 1)
    kernels.write(value, place, offset, v_cache, v_scales, head, head + 1)
    out = carray(_pointer(o.out + 2 * row * o.heads * o.d), (o.heads, o.d), like.dtype)
    kernels.attend(
        query, k_cache, v_cache, k_scales, v_scales, blocks[row], o.size, lengths[row], o.number, head, head + 1, out
    )
