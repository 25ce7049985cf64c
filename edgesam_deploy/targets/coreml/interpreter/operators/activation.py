"""Activations. ``alpha`` and ``beta`` are scalars unless they are said to be per channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgesam_deploy.errors import UnsupportedOperators
from edgesam_deploy.targets.coreml.interpreter.numerics import BLOCK, Array, elementwise, gelu_block, spread
from edgesam_deploy.targets.coreml.interpreter.operators.arguments import per_channel, positive

_ONE = np.float32(1)


def relu(x: Array) -> Array:
    return elementwise(lambda a, out: np.maximum(a, np.float32(0), out=out), x)


def relu6(x: Array) -> Array:
    return np.minimum(relu(x), np.float32(6))


def clamped_relu(x: Array, alpha: Array, beta: Array) -> Array:
    """min(beta, x) where x >= 0, else min(beta, alpha x)."""
    return np.minimum(np.where(x >= 0, x, alpha * x), beta)


def leaky_relu(x: Array, alpha: Array) -> Array:
    return np.where(x >= 0, x, alpha * x)


def prelu(x: Array, alpha: Array) -> Array:
    """``alpha``: (C,), of axis 1."""
    return np.where(x > 0, x, per_channel(alpha, x.ndim) * x)


def thresholded_relu(x: Array, alpha: Array) -> Array:
    return np.where(x >= alpha, x, np.float32(0))


def elu(x: Array, alpha: Array) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def linear_activation(x: Array, alpha: Array, beta: Array) -> Array:
    return alpha * x + beta


def scaled_tanh(x: Array, alpha: Array, beta: Array) -> Array:
    return np.asarray(alpha * np.tanh(beta * x))


def _sigmoid_block(x: Array, out: Array) -> None:
    np.negative(x, out=out)
    np.exp(out, out=out)
    np.add(out, _ONE, out=out)
    np.reciprocal(out, out=out)


def sigmoid(x: Array) -> Array:
    return elementwise(_sigmoid_block, x)


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def sigmoid_hard(x: Array, alpha: Array, beta: Array) -> Array:
    return np.asarray(np.minimum(np.maximum(alpha * x + beta, np.float32(0)), _ONE))


def softplus(x: Array) -> Array:
    return np.asarray(np.logaddexp(np.float32(0), x))


def softplus_parametric(x: Array, alpha: Array, beta: Array) -> Array:
    """alpha log(1 + exp(beta x)), both (C,) of axis 1."""
    return per_channel(alpha, x.ndim) * softplus(per_channel(beta, x.ndim) * x)


def softsign(x: Array) -> Array:
    return np.asarray(x / (1 + np.abs(x)))


def gelu(x: Array, mode: str = "EXACT") -> Array:
    """Hendrycks & Gimpel, 2016: x Φ(x), or one of its two approximations."""
    if mode == "EXACT":
        return elementwise(gelu_block, x)
    if mode == "TANH_APPROXIMATION":
        return elementwise(_tanh_gelu_block, x)
    if mode == "SIGMOID_APPROXIMATION":
        return x * sigmoid(np.float32(1.702) * x)
    raise UnsupportedOperators(f"gelu with mode {mode}; known: EXACT, TANH_APPROXIMATION, SIGMOID_APPROXIMATION")


def _tanh_gelu_block(x: Array, out: Array) -> None:
    np.multiply(x, x, out=out)
    out *= np.float32(0.044715)
    out += _ONE
    out *= x
    out *= np.float32(np.sqrt(2 / np.pi))
    np.tanh(out, out=out)
    out += _ONE
    out *= x
    out *= np.float32(0.5)


def softmax(x: Array, axis: Any = -1) -> Array:
    where = positive(axis, x.ndim)
    if where != x.ndim - 1:
        return np.moveaxis(softmax(np.moveaxis(x, where, -1)), -1, where)
    x = np.ascontiguousarray(x)
    out = np.empty_like(x)
    rows, results = x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1])
    step = max(BLOCK // x.shape[-1], 1)

    def block(index: int) -> None:
        a, b = (v[index * step : (index + 1) * step] for v in (rows, results))
        np.subtract(a, a.max(axis=1, keepdims=True), out=b)
        np.exp(b, out=b)
        b *= np.reciprocal(b.sum(axis=1, keepdims=True))

    spread(block, -(-len(rows) // step))
    return out


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "relu": relu,
    "relu6": relu6,
    "clamped_relu": clamped_relu,
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "thresholded_relu": thresholded_relu,
    "elu": elu,
    "linear_activation": linear_activation,
    "scaled_tanh": scaled_tanh,
    "sigmoid": sigmoid,
    "silu": silu,
    "sigmoid_hard": sigmoid_hard,
    "softplus": softplus,
    "softplus_parametric": softplus_parametric,
    "softsign": softsign,
    "gelu": gelu,
    "softmax": softmax,
}
