"""Matrix products, and normalisation, which is statistics of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgesam_deploy.targets.coreml.interpreter.numerics import Array
from edgesam_deploy.targets.coreml.interpreter.operators.activation import softmax
from edgesam_deploy.targets.coreml.interpreter.operators.arguments import flag, integer, integers, per_channel


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x (..., D) times ``weight`` (O, D) transposed, plus ``bias`` (O,)."""
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1]) @ weight.T
    if bias is not None:
        rows += bias
    return rows.reshape(*x.shape[:-1], weight.shape[0])


def matmul(x: Array, y: Array, transpose_x: Any = False, transpose_y: Any = False) -> Array:
    """As numpy.matmul; the last two axes of either side swapped on demand."""
    x = x.swapaxes(-1, -2) if flag(transpose_x) and x.ndim > 1 else x
    y = y.swapaxes(-1, -2) if flag(transpose_y) and y.ndim > 1 else y
    return np.asarray(np.matmul(x, y))


def einsum(values: Any, equation: str) -> Array:
    return np.asarray(np.einsum(equation, *values, optimize=True))


def scaled_dot_product_attention(
    query: Array, key: Array, value: Array, attn_mask: Array | None = None
) -> Array:  # (B, *, L, E), (B, *, S, E), (B, *, S, V) -> (B, *, L, V)
    """softmax(q kᵀ / √E + mask) v; a boolean mask keeps what it is true for."""
    scores = np.matmul(query, key.swapaxes(-1, -2))
    scores *= np.float32(1 / math.sqrt(query.shape[-1]))
    if attn_mask is not None:
        scores = scores + (np.where(attn_mask, 0, -np.inf) if attn_mask.dtype == np.bool_ else attn_mask)
    return np.asarray(np.matmul(softmax(scores.astype(np.float32, copy=False)), value))


def batch_norm(
    x: Array, mean: Array, variance: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: Any = 1e-5
) -> Array:
    """All statistics (C,) of axis 1."""
    scale = np.reciprocal(np.sqrt(variance + np.float32(epsilon)))
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale if beta is None else beta - mean * scale
    out = x * per_channel(scale, x.ndim)
    out += per_channel(shift, x.ndim)
    return out


def _normalized(x: Array, axes: tuple[int, ...], epsilon: Any) -> Array:
    out: Array = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(out).mean(axis=axes, keepdims=True)
    out *= np.reciprocal(np.sqrt(variance + np.float32(epsilon)))
    return out


def layer_norm(
    x: Array, axes: Any = None, gamma: Array | None = None, beta: Array | None = None, epsilon: Any = 1e-5
) -> Array:
    """``gamma`` and ``beta`` have the sizes of ``axes``, in the input's order."""
    over = tuple(sorted(a % x.ndim for a in integers(axes))) if axes is not None else tuple(range(x.ndim))
    shape = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    out = _normalized(x, over, epsilon)
    if gamma is not None:
        out *= gamma.reshape(shape)
    if beta is not None:
        out += beta.reshape(shape)
    return out


def instance_norm(x: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: Any = 1e-5) -> Array:
    out = _normalized(x, tuple(range(2, x.ndim)), epsilon)
    if gamma is not None:
        out *= per_channel(gamma, x.ndim)
    if beta is not None:
        out += per_channel(beta, x.ndim)
    return out


def l2_norm(x: Array, epsilon: Any = 1e-6) -> Array:
    """Over the last three axes."""
    squares = np.square(x).sum(axis=(-3, -2, -1), keepdims=True)
    return np.asarray(x / np.sqrt(squares + np.float32(epsilon)))


def local_response_norm(x: Array, size: Any, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 1.0) -> Array:
    """Over ``size`` neighbouring channels, the odd one out in front (Krizhevsky et al., 2012)."""
    count = integer(size)
    squares = np.pad(x * x, [(0, 0), (count // 2, (count - 1) // 2), *[(0, 0)] * (x.ndim - 2)])
    total = sum(squares[:, i : i + x.shape[1]] for i in range(count))
    return np.asarray(x / (np.float32(k) + np.float32(alpha / count) * total) ** np.float32(beta))


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "linear": linear,
    "matmul": matmul,
    "einsum": einsum,
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "instance_norm": instance_norm,
    "l2_norm": l2_norm,
    "local_response_norm": local_response_norm,
}
