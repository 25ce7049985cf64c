"""Convolutions and pooling over (N, C, *D) with one to three spatial dimensions.

A convolution is a matrix product: of the pixels themselves where the kernel is 1x1, else of the patches under the
kernel, taken a stripe of rows at a time so that they stay small. A depthwise one sums shifted, scaled copies instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from edgesam_deploy.errors import UnsupportedOperators
from edgesam_deploy.targets.coreml.interpreter.numerics import BLOCK, Array, spread
from edgesam_deploy.targets.coreml.interpreter.operators.arguments import flag, integer, integers, per_channel

PATCHES = 1 << 22  # values of patches at a time: 16 MiB, about the last-level cache
Sizes = tuple[int, ...]


def paddings(
    pad_type: str, pad: Any, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """(before, after) per spatial dimension; ``kernel`` with its dilation. ``same`` gives ceil(size / stride) outputs,
    the odd one out behind; ``same_lower`` has it in front.
    """
    if pad_type == "valid":
        return [(0, 0)] * len(kernel)
    if pad_type == "custom":
        flat = integers(pad) if pad is not None else (0,) * (2 * len(kernel))
        return list(zip(flat[::2], flat[1::2], strict=True))
    if pad_type not in ("same", "same_lower"):
        raise UnsupportedOperators(f"pad_type {pad_type}; known: valid, custom, same, same_lower")
    found = []
    for size, k, s in zip(sizes, kernel, strides, strict=True):
        total = max(0, (-(-size // s) - 1) * s + k - size)
        small, large = total // 2, total - total // 2
        found.append((small, large) if pad_type == "same" else (large, small))
    return found


def _padded(x: Array, pads: Sequence[tuple[int, int]], fill: float = 0) -> Array:
    if not any(before or after for before, after in pads):
        return x
    spatial = [size + before + after for size, (before, after) in zip(x.shape[2:], pads, strict=True)]
    out = np.full((*x.shape[:2], *spatial), fill, x.dtype)
    inner = tuple(slice(before, before + size) for size, (before, _) in zip(x.shape[2:], pads, strict=True))
    out[:, :, *inner] = x
    return out


def _taps(kernel: Sequence[int]) -> Iterator[Sizes]:
    yield from product(*(range(k) for k in kernel))


def _at(*indices: Any) -> Any:
    """An index of slices and numbers, whose types NumPy's annotations do not let mix."""
    return indices


def _under(x: Array, tap: Sizes, sizes: Sizes, strides: Sizes, dilations: Sizes) -> Array:
    """The view of padded ``x`` that one position of the kernel sees: (N, C, *sizes)."""
    cuts = (slice(t * d, t * d + (n - 1) * s + 1, s) for t, n, s, d in zip(tap, sizes, strides, dilations, strict=True))
    return x[:, :, *cuts]


def conv(
    x: Array, weight: Array, bias: Array | None = None, strides: Any = None, pad_type: str = "valid", pad: Any = None,
    dilations: Any = None, groups: Any = 1,
) -> Array:  # fmt: skip
    """``weight``: (C_out, C_in / groups, *K)."""
    count = x.ndim - 2
    steps, spread_by = _per_axis(strides, count), _per_axis(dilations, count)
    kernel = weight.shape[2:]
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, spread_by, strict=True))
    x = _padded(x, paddings(pad_type, pad, x.shape[2:], reach, steps))
    sizes = tuple((n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, steps, strict=True))
    split = integer(groups)
    if split == x.shape[1] == weight.shape[0] and count == 2:
        return _depthwise(x, weight, bias, sizes, steps, spread_by)
    out = np.empty((x.shape[0], weight.shape[0], *sizes), np.float32)
    if math.prod(kernel) == math.prod(steps) == split == 1:
        flat = np.ascontiguousarray(x).reshape(*x.shape[:2], -1)
        np.matmul(weight.reshape(weight.shape[:2]), flat, out=out.reshape(*out.shape[:2], -1))
    else:
        _by_patches(x, weight, split, out, steps, spread_by)
    if bias is not None:
        out += per_channel(bias, x.ndim)
    return out


def _per_axis(given: Any, count: int) -> Sizes:
    return (1,) * count if given is None else integers(given)


def _by_patches(x: Array, weight: Array, groups: int, out: Array, strides: Sizes, dilations: Sizes) -> None:
    batch, filters, rows, *rest = out.shape
    inner = weight.shape[1] * math.prod(weight.shape[2:])
    matrix = weight.reshape(1, groups, filters // groups, inner)
    stripe = max(1, PATCHES // max(inner * groups * math.prod(rest), 1))
    for first in range(0, rows, stripe):
        height = min(stripe, rows - first)
        start = first * strides[0]
        patches = _patches(x[:, :, start:], weight.shape[2:], (height, *rest), strides, dilations)
        part = np.matmul(matrix, patches.reshape(batch, groups, inner, -1))
        out[:, :, first : first + height] = part.reshape(batch, filters, height, *rest)


def _patches(x: Array, kernel: Sizes, sizes: Sizes, strides: Sizes, dilations: Sizes) -> Array:
    """(N, C, *kernel, *sizes): for every output pixel what lies under the kernel."""
    out = np.empty((*x.shape[:2], *kernel, *sizes), x.dtype)
    for tap in _taps(kernel):
        out[_at(slice(None), slice(None), *tap)] = _under(x, tap, sizes, strides, dilations)
    return out


def _depthwise(x: Array, weight: Array, bias: Array | None, sizes: Sizes, strides: Sizes, dilations: Sizes) -> Array:
    """One kernel per channel; channels in blocks that stay in the cache, on the threads."""
    batch, channels = x.shape[:2]
    out = np.empty((batch, channels, *sizes), np.float32)
    step = max(1, BLOCK // max(math.prod(sizes), 1))

    def block(index: int) -> None:
        part = slice(index * step, (index + 1) * step)
        total, source = out[:, part], x[:, part]
        scratch = np.empty_like(total)
        total[...] = 0 if bias is None else per_channel(bias[part], x.ndim)
        for tap in _taps(weight.shape[2:]):
            factor = per_channel(weight[_at(part, 0, *tap)], x.ndim)
            np.multiply(_under(source, tap, sizes, strides, dilations), factor, out=scratch)
            np.add(total, scratch, out=total)

    spread(block, -(-channels // step))
    return out


def conv_transpose(
    x: Array, weight: Array, bias: Array | None = None, pad: Any = None, output_shape: Any = None,
    pad_type: str = "valid", strides: Any = None, dilations: Any = None, groups: Any = 1,
) -> Array:  # fmt: skip
    """``weight``: (C_in, C_out / groups, *K). Every input pixel adds its kernel to the output."""
    count, split = x.ndim - 2, integer(groups)
    steps, spread_by = _per_axis(strides, count), _per_axis(dilations, count)
    kernel, sizes = weight.shape[2:], x.shape[2:]
    filters = weight.shape[1] * split
    full = tuple((n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(sizes, steps, kernel, spread_by, strict=True))
    matrix = weight.reshape(split, weight.shape[0] // split, -1).swapaxes(1, 2)
    flat = np.ascontiguousarray(x).reshape(x.shape[0], split, x.shape[1] // split, -1)
    columns = np.matmul(matrix, flat).reshape(x.shape[0], filters, *kernel, *sizes)
    wanted = None if output_shape is None else integers(output_shape)[2:]
    cuts = _transposed_cuts(pad_type, pad, sizes, steps, full, wanted)
    room = tuple(max(size, cut.stop) for size, cut in zip(full, cuts, strict=True))  # an output padding goes beyond
    out = np.zeros((x.shape[0], filters, *room), np.float32)
    for tap in _taps(kernel):
        _under(out, tap, sizes, steps, spread_by)[...] += columns[:, :, *tap]
    out = out[:, :, *cuts]
    if bias is not None:
        out += per_channel(bias, x.ndim)
    return out


def _transposed_cuts(
    pad_type: str, pad: Any, sizes: Sizes, strides: Sizes, full: Sizes, wanted: Sizes | None
) -> list[slice]:
    """Which part of the full result is kept, by dimension."""
    if pad_type == "same":
        kept = wanted or tuple(n * s for n, s in zip(sizes, strides, strict=True))
        starts = tuple(max(size - k, 0) // 2 for size, k in zip(full, kept, strict=True))
        return [slice(start, start + k) for start, k in zip(starts, kept, strict=True)]
    pads = paddings(pad_type, pad, sizes, sizes, strides)
    kept = wanted or tuple(size - a - b for size, (a, b) in zip(full, pads, strict=True))
    return [slice(before, before + k) for (before, _), k in zip(pads, kept, strict=True)]


def _pooled(
    function: np.ufunc, x: Array, fill: float, kernel_sizes: Any, strides: Any, pad_type: str, pad: Any, ceil_mode: Any
) -> Array:
    """``function`` over windows; what lies outside counts as ``fill``."""
    kernel = integers(kernel_sizes)
    steps = _per_axis(strides, len(kernel))
    pads = paddings(pad_type, pad, x.shape[2:], kernel, steps)
    sizes, extra = _pool_sizes(x.shape[2:], kernel, steps, pads, up=flag(ceil_mode))
    x = _padded(x, [(a, b + e) for (a, b), e in zip(pads, extra, strict=True)], fill)
    ones = (1,) * len(kernel)
    views = (_under(x, tap, sizes, steps, ones) for tap in _taps(kernel))
    out = next(views).copy()
    for view in views:
        function(out, view, out=out)
    return out


def _pool_sizes(
    spatial: Sizes, kernel: Sizes, strides: Sizes, pads: Sequence[tuple[int, int]], *, up: bool
) -> tuple[Sizes, Sizes]:
    """Output sizes, and how much more must be padded behind for them. ``up`` rounds up, but starts no window beyond
    the input and its front padding.
    """
    sizes, extra = [], []
    for n, k, s, (before, after) in zip(spatial, kernel, strides, pads, strict=True):
        room = n + before + after - k
        size = (-(-room // s) if up else room // s) + 1
        if up and (size - 1) * s >= n + before and before + after > 0:
            size -= 1
        sizes.append(size)
        extra.append(max((size - 1) * s - room, 0))
    return tuple(sizes), tuple(extra)


def max_pool(
    x: Array, kernel_sizes: Any, pad_type: str, strides: Any = None, pad: Any = None, ceil_mode: Any = False
) -> Array:
    return _pooled(np.maximum, x, -np.inf, kernel_sizes, strides, pad_type, pad, ceil_mode)


def avg_pool(
    x: Array, kernel_sizes: Any, pad_type: str, strides: Any = None, pad: Any = None, ceil_mode: Any = False,
    exclude_padding_from_average: Any = False,
) -> Array:  # fmt: skip
    total = _pooled(np.add, x, 0, kernel_sizes, strides, pad_type, pad, ceil_mode)
    if not flag(exclude_padding_from_average):
        return total / np.float32(math.prod(integers(kernel_sizes)))
    ones = np.ones((1, 1, *x.shape[2:]), np.float32)
    return total / _pooled(np.add, ones, 0, kernel_sizes, strides, pad_type, pad, ceil_mode)


def l2_pool(
    x: Array, kernel_sizes: Any, pad_type: str, strides: Any = None, pad: Any = None, ceil_mode: Any = False
) -> Array:
    return np.sqrt(_pooled(np.add, x * x, 0, kernel_sizes, strides, pad_type, pad, ceil_mode))


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "l2_pool": l2_pool,
}
