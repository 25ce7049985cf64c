"""Operators that move values without changing them: shapes, slices, joins, rearrangements.

Their results may be views of their arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgesam_deploy.errors import UnsupportedOperators
from edgesam_deploy.targets.coreml.interpreter.numerics import Array
from edgesam_deploy.targets.coreml.interpreter.operators.arguments import flag, integer, integers, positive


def identity(x: Any) -> Any:
    return x


def reshape(x: Array, shape: Array) -> Array:
    """0 keeps the dimension at its place, -1 is what is left."""
    sizes = integers(shape)
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(sizes)])


def reshape_like(x: Array, ref_tensors: Any, begins: Array, ends: Array, end_masks: Array) -> Array:
    """``x`` with the dimensions ``begins[i]:ends[i]`` of each reference, joined; a mask means to the end."""
    refs = ref_tensors if isinstance(ref_tensors, tuple) else (ref_tensors,)
    sizes: list[int] = []
    for ref, begin, end, mask in zip(refs, integers(begins), integers(ends), end_masks.reshape(-1), strict=True):
        sizes += ref.shape[begin : None if mask else end]
    return x.reshape(sizes)


def transpose(x: Array, perm: Array) -> Array:
    return x.transpose(integers(perm))


def expand_dims(x: Array, axes: Array) -> Array:
    return np.expand_dims(x, integers(axes))


def squeeze(x: Array, axes: Any = None) -> Array:
    """Dimensions that are not 1 stay, as in PyTorch."""
    wanted = range(x.ndim) if axes is None else integers(axes)
    return np.squeeze(x, tuple(a for a in wanted if x.shape[a] == 1))


def flatten2d(x: Array, axis: Any = 1) -> Array:
    split = integer(axis)
    return x.reshape(math.prod(x.shape[:split]), math.prod(x.shape[split:]))


def _cuts(
    x: Array, begin: Array, end: Array, stride: Any, begin_mask: Any, end_mask: Any, squeeze_mask: Any
) -> tuple[slice | int, ...]:
    """NumPy's index: a mask over ``begin`` or ``end`` means from or to the edge, ``squeeze_mask`` a single index."""
    rank = x.ndim
    steps = (1,) * rank if stride is None else integers(stride)
    from_edge, to_edge, single = (
        (False,) * rank if m is None else tuple(bool(v) for v in np.asarray(m).reshape(-1))
        for m in (begin_mask, end_mask, squeeze_mask)
    )
    found: list[slice | int] = []
    for i, (first, last) in enumerate(zip(integers(begin), integers(end), strict=True)):
        start = None if from_edge[i] else first
        found.append((start or 0) if single[i] else slice(start, None if to_edge[i] else last, steps[i]))
    return tuple(found)


def slice_by_index(
    x: Array, begin: Array, end: Array, stride: Any = None, begin_mask: Any = None, end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Array:  # fmt: skip
    return np.asarray(x[_cuts(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)])


def slice_update(
    x: Array, update: Array, begin: Array, end: Array, stride: Any = None, begin_mask: Any = None,
    end_mask: Any = None, squeeze_mask: Any = None,
) -> Array:  # fmt: skip
    out = x.copy()
    out[_cuts(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)] = update
    return out


def slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    """A size of -1 is everything behind ``begin``."""
    cuts = []
    for limit, start, count in zip(x.shape, integers(begin), integers(size), strict=True):
        first = start + limit if start < 0 else start
        cuts.append(slice(first, None if count == -1 else first + count))
    return x[tuple(cuts)]


def concat(values: Any, axis: Array, interleave: Any = False) -> Array:
    arrays = [np.atleast_1d(v) for v in (values if isinstance(values, tuple) else (values,))]
    if not flag(interleave):
        return np.concatenate(arrays, axis=integer(axis))
    where = positive(axis, arrays[0].ndim)
    joined = np.stack(arrays, axis=where + 1)
    shape = list(arrays[0].shape)
    shape[where] *= len(arrays)
    return joined.reshape(shape)


def stack(values: Any, axis: Array) -> Array:
    return np.stack(values if isinstance(values, tuple) else (values,), axis=integer(axis))


def split(x: Array, axis: Array, num_splits: Any = None, split_sizes: Any = None) -> tuple[Array, ...]:
    where = integer(axis)
    if split_sizes is None:
        return tuple(np.split(x, integer(num_splits), axis=where))
    return tuple(np.split(x, np.cumsum(integers(split_sizes))[:-1], axis=where))


def tile(x: Array, reps: Array) -> Array:
    return np.tile(x, integers(reps))


def reverse(x: Array, axes: Any = None) -> Array:
    return np.flip(x, None if axes is None else integers(axes))


def reverse_sequence(x: Array, lengths: Array, seq_axis: Any = 0, batch_axis: Any = 0) -> Array:
    """The first ``lengths[b]`` values along ``seq_axis`` in reverse, for each b of ``batch_axis``."""
    out = np.moveaxis(x, (positive(batch_axis, x.ndim), positive(seq_axis, x.ndim)), (0, 1)).copy()
    for row, length in zip(out, integers(lengths), strict=True):
        row[:length] = row[:length][::-1].copy()
    return np.moveaxis(out, (0, 1), (positive(batch_axis, x.ndim), positive(seq_axis, x.ndim)))


def pad(x: Array, pad: Array, mode: str = "constant", constant_val: Any = 0) -> Array:
    """``pad``: (before, after) of the last dimensions."""
    pairs = np.asarray(pad).reshape(-1, 2).tolist()
    widths = [(0, 0)] * (x.ndim - len(pairs)) + [tuple(p) for p in pairs]
    if mode == "constant":
        return np.pad(x, widths, constant_values=np.asarray(constant_val).reshape(())[()])
    if mode not in ("reflect", "replicate"):
        raise UnsupportedOperators(f"pad with mode {mode}; known: constant, reflect, replicate")
    return np.pad(x, widths, "reflect" if mode == "reflect" else "edge")


def _blocks(x: Array, size: int) -> Array:
    """(N, C, H, W) as (N, C, H / size, size, W / size, size)."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // size, size, w // size, size)


def space_to_depth(x: Array, block_size: Array) -> Array:
    """The place in the block becomes the slow part of the channel."""
    s = integer(block_size)
    n, c, h, w = x.shape
    return _blocks(x, s).transpose(0, 3, 5, 1, 2, 4).reshape(n, c * s * s, h // s, w // s)


def depth_to_space(x: Array, block_size: Array) -> Array:
    """The inverse of space_to_depth."""
    s = integer(block_size)
    n, c, h, w = x.shape
    return x.reshape(n, s, s, c // (s * s), h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, -1, h * s, w * s)


def pixel_shuffle(x: Array, upscale_factor: Array) -> Array:
    """As PyTorch's: the place in the block is the fast part of the channel (Shi et al., 2016)."""
    s = integer(upscale_factor)
    n, c, h, w = x.shape
    return x.reshape(n, c // (s * s), s, s, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, -1, h * s, w * s)


def pixel_unshuffle(x: Array, downscale_factor: Array) -> Array:
    s = integer(downscale_factor)
    n, c, h, w = x.shape
    return _blocks(x, s).transpose(0, 1, 3, 5, 2, 4).reshape(n, c * s * s, h // s, w // s)


def space_to_batch(x: Array, block_shape: Array, paddings: Array) -> Array:
    """As TensorFlow's: the place in the block becomes the slow part of the batch."""
    (top, bottom), (left, right) = np.asarray(paddings).reshape(2, 2).tolist()
    x = np.pad(x, [(0, 0), (0, 0), (top, bottom), (left, right)])
    (a, b), (n, c, h, w) = integers(block_shape), x.shape
    blocks = x.reshape(n, c, h // a, a, w // b, b).transpose(3, 5, 0, 1, 2, 4)
    return blocks.reshape(n * a * b, c, h // a, w // b)


def batch_to_space(x: Array, block_shape: Array, crops: Array) -> Array:
    """The inverse of space_to_batch."""
    (top, bottom), (left, right) = np.asarray(crops).reshape(2, 2).tolist()
    (a, b), (n, c, h, w) = integers(block_shape), x.shape
    joined = x.reshape(a, b, n // (a * b), c, h, w).transpose(2, 3, 4, 0, 5, 1).reshape(-1, c, h * a, w * b)
    return joined[:, :, top : h * a - bottom, left : w * b - right]


def sliding_windows(x: Array, axis: Array, size: Array, stride: Any = 1) -> Array:
    """The windows' own axis follows ``axis``."""
    where = positive(axis, x.ndim)
    windows = np.lib.stride_tricks.sliding_window_view(x, integer(size), axis=where)
    every: tuple[slice, ...] = (slice(None),) * where
    return np.moveaxis(windows[(*every, slice(None, None, integer(stride)))], -1, where + 1)


def crop(x: Array, crop_height: Array, crop_width: Array) -> Array:
    """(before, after) cut off the last two axes."""
    (top, bottom), (left, right) = integers(crop_height), integers(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "identity": identity,
    "reshape": reshape,
    "reshape_like": reshape_like,
    "transpose": transpose,
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "flatten2d": flatten2d,
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "slice_update": slice_update,
    "concat": concat,
    "stack": stack,
    "split": split,
    "tile": tile,
    "reverse": reverse,
    "reverse_sequence": reverse_sequence,
    "pad": pad,
    "space_to_depth": space_to_depth,
    "depth_to_space": depth_to_space,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "space_to_batch": space_to_batch,
    "batch_to_space": batch_to_space,
    "sliding_windows": sliding_windows,
    "crop": crop,
}
