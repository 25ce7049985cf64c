"""Arithmetic of the interpreter: fp32, in blocks that stay in the cache, on all cores, and rounding to fp16 and back.

NumPy's own conversions between fp32 and fp16 take 8 and 10 ns per value here, as much as a small convolution; rounding
within fp32 takes less than one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BLOCK = 1 << 16  # values: with a few temporaries of it the work stays in a core's second-level cache
LARGE = 8 * BLOCK  # values from which handing work to threads pays for a single addition
LARGEST_HALF = np.float32(65504)
_EXPONENT = np.int32(0x7F800000)
_SMALLEST_NORMAL = np.int32(0x38800000)  # 2 ** -14 as fp32 bits: below it fp16 has the same step everywhere
_SHIFT = np.int32((13 << 23) + 0x400000)  # times 1.5 * 2 ** 13: adding it leaves exactly 10 bits of fraction


@cache
def pool() -> ThreadPoolExecutor:
    """Threads for blocks of elementwise work; NumPy lets go of the interpreter's lock inside."""
    if hasattr(os, "register_at_fork"):  # not on Windows; a child process has the pool without its threads
        os.register_at_fork(after_in_child=pool.cache_clear)
    return ThreadPoolExecutor(thread_count(), thread_name_prefix="mil")


@cache
def thread_count() -> int:
    """As many as BLAS is told to use, else one per core."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return max(int(told) if told.isdigit() else os.cpu_count() or 1, 1)


def spread(work: Callable[[int], None], count: int) -> None:
    """``work(0) .. work(count - 1)`` on the threads. Raises what the first failing one raised."""

    def quietly(index: int) -> None:
        with np.errstate(all="ignore"):  # overflow becomes infinite, as on the device; threads do not inherit this
            work(index)

    if count == 1 or thread_count() == 1:
        for index in range(count):
            quietly(index)
        return
    for _ in pool().map(quietly, range(count)):
        pass


def in_blocks(work: Callable[..., None], *arrays: Array) -> None:
    """``work`` on blocks of flat contiguous arrays of one size, the last of which it usually writes to."""
    size = arrays[0].size

    def block(index: int) -> None:
        start = index * BLOCK
        work(*(a[start : start + BLOCK] for a in arrays))

    spread(block, -(-size // BLOCK))


def elementwise(work: Callable[..., None], x: Array) -> Array:
    """A new array that ``work(block of x, block of the result)`` fills."""
    x = np.asarray(x, order="C")  # ascontiguousarray would make a scalar a vector
    out = np.empty_like(x)
    in_blocks(work, x.reshape(-1), out.reshape(-1))
    return out


def binary(function: np.ufunc, x: Array, y: Array) -> Array:
    """``function`` of two arrays, broadcast. A large result is computed in parts, on the threads."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    size = math.prod(shape)
    if size < LARGE or x.dtype != y.dtype:
        return np.asarray(function(x, y))
    out = np.empty(shape, x.dtype)
    if x.shape == y.shape and x.flags.c_contiguous and y.flags.c_contiguous:
        in_blocks(lambda a, b, c: function(a, b, out=c), x.reshape(-1), y.reshape(-1), out.reshape(-1))
        return out
    axis = next(i for i, n in enumerate(shape) if n > 1)
    a, b = (np.moveaxis(np.broadcast_to(v, shape), axis, 0) for v in (x, y))
    c = np.moveaxis(out, axis, 0)
    step = max(1, len(c) * BLOCK // size)

    def part(index: int) -> None:
        rows = slice(index * step, (index + 1) * step)
        function(a[rows], b[rows], out=c[rows])

    spread(part, -(-len(c) // step))
    return out


def round_to_half(x: Array, out: Array) -> None:
    """fp32 values of flat ``x`` rounded to the nearest fp16, ties to even, into ``out`` (which may be ``x``).

    Adding 1.5 * 2 ** (e + 13) to a value with exponent e, and subtracting it again, rounds to 10 bits of fraction; with
    e at least -14 this covers fp16's subnormals. What leaves the range, and NaN, takes NumPy's slow conversion.
    """
    if not x.size:
        return
    if not (x.max() <= LARGEST_HALF and x.min() >= -LARGEST_HALF):  # NaN fails too
        with np.errstate(over="ignore"):
            out[...] = x.astype(np.float16)
        return
    magic = np.bitwise_and(x.view(np.int32), _EXPONENT)
    np.maximum(magic, _SMALLEST_NORMAL, out=magic)
    magic += _SHIFT
    np.add(x, magic.view(np.float32), out=out)
    np.subtract(out, magic.view(np.float32), out=out)


def half(x: Array, *, in_place: bool = False) -> Array:
    """fp32 array rounded to fp16's values, still as fp32."""
    x = np.asarray(x, order="C")
    if not in_place or not x.flags.writeable:
        return elementwise(round_to_half, x)
    in_blocks(round_to_half, x.reshape(-1), x.reshape(-1))
    return x


@cache
def _erfc_coefficients() -> tuple[np.float32, ...]:
    """c with erfc(z) = exp(-z²) t (c0 + c1 t + ..), t = 1 / (1 + z / 2), for z >= 0; highest power first.

    erfc(z) exp(z²) / t is smooth in t on (0, 1], so a polynomial at Chebyshev points is good to 1e-8 at degree 9.
    """
    from scipy.special import erfcx

    t = 0.5 + 0.5 * np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    fitted = np.polynomial.Polynomial.fit(t, erfcx(2 / t - 2) / t, 9, domain=[0, 1], window=[0, 1])
    return tuple(np.float32(c) for c in fitted.coef[::-1])


def _erfc_positive(z: Array) -> Array:
    """erfc of a flat fp32 block of values >= 0, which is overwritten."""
    t = z * np.float32(0.5)
    t += np.float32(1)
    np.reciprocal(t, out=t)
    first, *others = _erfc_coefficients()
    total = np.full_like(t, first)
    for c in others:
        total *= t
        total += c
    total *= t
    z *= z
    np.negative(z, out=z)
    np.exp(z, out=z)
    total *= z
    return total


def erf_block(x: Array, out: Array) -> None:
    """erf of a flat fp32 block, within 2e-7; SciPy's takes 60 ns per value."""
    tail = _erfc_positive(np.abs(x))
    np.subtract(np.float32(1), tail, out=tail)
    np.copysign(tail, x, out=out)


def gelu_block(x: Array, out: Array) -> None:
    """x Φ(x) = max(x, 0) - |x| erfc(|x| / √2) / 2 of a flat fp32 block."""
    size = np.minimum(np.abs(x), np.float32(64))  # far beyond the last difference; infinity times 0 is NaN
    tail = _erfc_positive(size * np.float32(np.sqrt(0.5)))
    tail *= size
    tail *= np.float32(0.5)
    np.maximum(x, np.float32(0), out=out)
    np.subtract(out, tail, out=out)
