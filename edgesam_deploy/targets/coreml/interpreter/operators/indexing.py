"""Gathers, scatters, sorts, and tensors made from indices or shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgesam_deploy.errors import UnsupportedOperators
from edgesam_deploy.targets.coreml.interpreter.numerics import Array
from edgesam_deploy.targets.coreml.interpreter.operators.arguments import flag, integer, integers, positive

_SCATTERS = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
}  # fmt: skip


def gather(x: Array, indices: Array, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False) -> Array:
    """Shape x[:axis] + indices[batch_dims:] + x[axis + 1:]."""
    where, batch = positive(axis, x.ndim), integer(batch_dims)
    if batch == 0:
        return np.take(x, indices.astype(np.intp), axis=where)
    grid = np.ogrid[tuple(slice(n) for n in indices.shape[:batch])]
    leading = [g.reshape(*g.shape, *(1,) * (indices.ndim - batch)) for g in grid]
    between: list[Any] = [slice(None)] * (where - batch)
    found = x[(*leading, *between, indices.astype(np.intp))]
    if not between:
        return np.asarray(found)
    # NumPy puts the dimensions of separated indices first
    own = range(batch, indices.ndim)
    return np.moveaxis(found, tuple(own), tuple(range(where, where + len(own))))


def gather_along_axis(x: Array, indices: Array, axis: Any = 0, validate_indices: Any = False) -> Array:
    return np.take_along_axis(x, indices.astype(np.intp), axis=integer(axis))


def gather_nd(x: Array, indices: Array, batch_dims: Any = 0, validate_indices: Any = False) -> Array:
    """The last axis of ``indices`` is one index into the dimensions behind the first ``batch_dims``."""
    batch = integer(batch_dims)
    grid = np.ogrid[tuple(slice(n) for n in indices.shape[:batch])] if batch else ()
    leading = [g.reshape(*g.shape, *(1,) * (indices.ndim - 1 - batch)) for g in grid]
    return np.asarray(x[(*leading, *np.moveaxis(indices.astype(np.intp), -1, 0))])


def _scattered(data: Array, index: Any, updates: Array, mode: str) -> Array:
    out = data.copy()
    if mode == "update":
        out[index] = updates
    elif mode in _SCATTERS:
        _SCATTERS[mode].at(out, index, updates)
    else:
        raise UnsupportedOperators(f"scatter with mode {mode}; known: update, {', '.join(_SCATTERS)}")
    return out


def scatter(
    data: Array, indices: Array, updates: Array, axis: Any = 0, mode: str = "add", validate_indices: Any = False
) -> Array:
    """``updates``: ``data`` with the size of ``indices`` at ``axis``."""
    every: list[Any] = [slice(None)] * positive(axis, data.ndim)
    return _scattered(data, (*every, indices.astype(np.intp)), updates, mode)


def scatter_along_axis(
    data: Array, indices: Array, updates: Array, axis: Any = 0, mode: str = "add", validate_indices: Any = False
) -> Array:
    grid = list(np.ogrid[tuple(slice(n) for n in indices.shape)])
    grid[positive(axis, data.ndim)] = indices.astype(np.intp)
    return _scattered(data, tuple(grid), updates, mode)


def scatter_nd(data: Array, indices: Array, updates: Array, mode: str = "add", validate_indices: Any = False) -> Array:
    return _scattered(data, tuple(np.moveaxis(indices.astype(np.intp), -1, 0)), updates, mode)


def _order(x: Array, axis: int, *, ascending: bool) -> Array:
    """Indices that sort, equal values in their order."""
    keys = x if ascending else -(x.astype(np.int64) if x.dtype.kind in "iub" else x)
    return np.argsort(keys, axis=axis, kind="stable").astype(np.int32)


def argsort(x: Array, axis: Any = -1, ascending: Any = False) -> Array:
    return _order(x, integer(axis), ascending=flag(ascending))


def topk(
    x: Array, k: Any = 1, axis: Any = -1, ascending: Any = False, sort: Any = True, return_indices: Any = True,
    output_indices_dtype: str = "int32",
) -> Array | tuple[Array, Array]:  # fmt: skip
    """The first ``k`` in sorted order, sorted whether asked for or not, and their indices."""
    where = positive(axis, x.ndim)
    chosen = np.take(_order(x, where, ascending=flag(ascending)), np.arange(integer(k)), axis=where)
    values = np.take_along_axis(x, chosen, axis=where)
    return (values, chosen.astype(np.dtype(output_indices_dtype))) if flag(return_indices) else values


def one_hot(indices: Array, one_hot_vector_size: Array, axis: Any = -1, on_value: Any = 1, off_value: Any = 0) -> Array:
    """All ``off_value`` for an index outside the vector. The type is that of ``on_value``."""
    where = integer(axis) % (indices.ndim + 1)
    size = integer(one_hot_vector_size)
    shape = [size if i == where else 1 for i in range(indices.ndim + 1)]
    hot = np.expand_dims(indices, where) == np.arange(size).reshape(shape)
    return np.asarray(np.where(hot, on_value, off_value), np.asarray(on_value).dtype)


def band_part(x: Array, lower: Any = -1, upper: Any = -1) -> Array:
    """Zero outside the band; a negative bound keeps that whole triangle."""
    rows, columns = np.ogrid[: x.shape[-2], : x.shape[-1]]
    below, above = integer(lower), integer(upper)
    keep = ((rows - columns <= below) | (below < 0)) & ((columns - rows <= above) | (above < 0))
    return np.where(keep, x, np.zeros((), x.dtype))


def cumsum(x: Array, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> Array:
    where = positive(axis, x.ndim)
    source = np.flip(x, where) if flag(reverse) else x
    total = np.cumsum(source, axis=where, dtype=x.dtype)
    if flag(exclusive):
        total -= source
    return np.flip(total, where) if flag(reverse) else total


def fill(shape: Array, value: Any = 0.0) -> Array:
    return np.full(integers(shape), np.asarray(value).reshape(())[()])


def fill_like(ref_tensor: Array, value: Any = 0.0) -> Array:
    return fill(np.asarray(ref_tensor.shape), value)


def range_1d(end: Array, start: Array, step: Array) -> Array:
    first, last, by = (v.item() for v in (start, end, step))
    return np.arange(first, last, by).astype(start.dtype)


def shape(x: Array) -> Array:
    return np.asarray(x.shape, np.int32)


def non_zero(x: Array) -> Array:
    """(N, rank of x)."""
    return np.argwhere(x).astype(np.int32)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
    "argsort": argsort,
    "topk": topk,
    "one_hot": one_hot,
    "band_part": band_part,
    "cumsum": cumsum,
    "fill": fill,
    "fill_like": fill_like,
    "range_1d": range_1d,
    "shape": shape,
    "non_zero": non_zero,
}
