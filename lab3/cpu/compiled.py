"""Loops compiled by numba for the processor at hand, once: lab3's cache keeps what it made.

16-bit numbers travel as integers, which numba has on a CPU and halves it has not: `uint16` is fp16, `int16` is bf16
(`stored`); `load` and `store` turn them into fp32 and back.
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
FAST = {"reassoc", "contract", "nsz"}
_MODULES = ("compiled", "tiles", "kernels", "products", "prompts", "replay")
_F = TypeVar("_F", bound=Callable[..., Any])


def _cache_folder() -> str | None:
    """Where the machine code is kept, or None where nothing can be. One folder for each state of these modules: numba
    tells files apart by size and time, which are alike in the wheels of two versions."""
    source = hashlib.sha256(b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in _MODULES))
    folder = cache_root() / "kernels" / source.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


def compiled(**options: Any) -> Callable[[_F], _F]:
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
low = _cast(types.float32, types.uint8, lambda b, v: b.sitofp(b.zext(b.and_(v, _I8(15)), _I32), _FLOAT))
high = _cast(types.float32, types.uint8, lambda b, v: b.sitofp(b.zext(b.lshr(v, _I8(4)), _I32), _FLOAT))
byte = _cast(types.float32, types.uint8, lambda b, v: b.sitofp(b.zext(v, _I32), _FLOAT))
truncated = _cast(types.uint8, types.float32, lambda b, v: b.trunc(b.fptosi(v, _I32), _I8))


def _round_to_bf16(builder: ir.IRBuilder, value: Any) -> Any:
    """To the nearest, ties to even; NaN stays one."""
    bits = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, _I32(0x7FFF))), _I32(16))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, _I32(0x7FC0), rounded), _I16)


_float_to_bf16 = _cast(types.int16, types.float32, _round_to_bf16)


def load(number: Any) -> Any:
    """The number as fp32."""


def store(array: Any, number: Any) -> Any:
    """`number` as the elements of `array` are stored."""


@overload(load, inline="always", strict=False)  # type: ignore[untyped-decorator]
def _load(number: Any) -> Any:
    if number == types.uint16:
        return lambda number: _half_to_float(number)
    if number == types.int16:
        return lambda number: _bf16_to_float(number)
    return lambda number: number


@overload(store, inline="always", strict=False)  # type: ignore[untyped-decorator]
def _store(array: Any, number: Any) -> Any:
    if array.dtype == types.uint16:
        return lambda array, number: _float_to_half(number)
    if array.dtype == types.int16:
        return lambda array, number: _float_to_bf16(number)
    return lambda array, number: number


_whole = _cast(types.int32, types.float32, lambda b, v: b.fptosi(v, _I32))
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504088896341), np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)
_EXP_MIN, _EXP_MAX = np.float32(-87.3), np.float32(88.3)


@compiled(fastmath={"contract"})  # in this order: the two parts of ln 2 are taken away one after the other
def exp(x: Any) -> Any:
    """e**x in fp32, to two units in the last place, from -87 to 88 (held there beyond): Cephes' `expf` (S. L. Moshier,
    1992). The C library's is a call for each number, and this one is computed for sixteen at once."""
    x = min(max(x, _EXP_MIN), _EXP_MAX)
    n = np.floor(x * _LOG2_E + HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    return (p * r * r + r + ONE) * _from_bits((_whole(n) + np.int32(127)) << np.int32(23))
