"""Arithmetic, comparison, logic and elementary functions, with NumPy's broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgesam_deploy.targets.coreml.interpreter.numerics import Array, binary, elementwise, erf_block
from edgesam_deploy.targets.coreml.interpreter.types import held


def _unary(function: np.ufunc) -> Callable[..., Array]:
    def operator(x: Array) -> Array:
        return elementwise(lambda a, out: function(a, out=out), x)

    return operator


def _binary(function: np.ufunc) -> Callable[..., Array]:
    def operator(x: Array, y: Array) -> Array:
        return binary(function, x, y)

    return operator


def _broadcast(function: np.ufunc) -> Callable[..., Array]:
    """For functions whose result has another type than their arguments."""

    def operator(x: Array, y: Array) -> Array:
        return np.asarray(function(x, y))

    return operator


def power(x: Array, y: Array) -> Array:
    """x ** y; squares, which norms are made of, without the general power's 20 ns."""
    return binary(np.multiply, x, x) if y.size == 1 and y.flat[0] == 2 else np.asarray(np.power(x, y))


def mod(x: Array, y: Array) -> Array:
    """The remainder with the sign of ``y``."""
    return np.asarray(np.mod(x, y))


def erf(x: Array) -> Array:
    return elementwise(erf_block, x)


def clip(x: Array, alpha: Array, beta: Array) -> Array:
    return np.minimum(np.maximum(x, alpha), beta)


def threshold(x: Array, alpha: Array) -> Array:
    return np.maximum(x, alpha)


def inverse(x: Array, epsilon: Any = 1e-4) -> Array:
    return np.reciprocal(x + np.float32(epsilon))


def log(x: Array, epsilon: Any = 1e-45) -> Array:
    return np.log(x + np.float32(epsilon))


def rsqrt(x: Array, epsilon: Any = 1e-12) -> Array:
    return np.reciprocal(np.sqrt(x + np.float32(epsilon)))


def logical_not(x: Array) -> Array:
    return np.logical_not(x)


def select(cond: Array, a: Array, b: Array) -> Array:
    return np.where(cond.astype(np.bool_, copy=False), a, b)


def cast(x: Array, dtype: str) -> Array:
    """``x`` as ``dtype``; towards an integer the fraction is cut off. Rounding to fp16 follows by the declared type."""
    return x.astype(held(dtype), copy=False)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "abs": _unary(np.absolute),
    "acos": _unary(np.arccos),
    "asin": _unary(np.arcsin),
    "atan": _unary(np.arctan),
    "atanh": _unary(np.arctanh),
    "ceil": _unary(np.ceil),
    "cos": _unary(np.cos),
    "cosh": _unary(np.cosh),
    "exp": _unary(np.exp),
    "exp2": _unary(np.exp2),
    "floor": _unary(np.floor),
    "round": _unary(np.rint),  # ties to even
    "sign": _unary(np.sign),
    "sin": _unary(np.sin),
    "sinh": _unary(np.sinh),
    "sqrt": _unary(np.sqrt),
    "square": _unary(np.square),
    "tan": _unary(np.tan),
    "tanh": _unary(np.tanh),
    "add": _binary(np.add),
    "sub": _binary(np.subtract),
    "mul": _binary(np.multiply),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "floor_div": _binary(np.floor_divide),
    "real_div": _broadcast(np.true_divide),  # of integers as well: the declared type then cuts the fraction off
    "equal": _broadcast(np.equal),
    "not_equal": _broadcast(np.not_equal),
    "greater": _broadcast(np.greater),
    "greater_equal": _broadcast(np.greater_equal),
    "less": _broadcast(np.less),
    "less_equal": _broadcast(np.less_equal),
    "logical_and": _broadcast(np.logical_and),
    "logical_or": _broadcast(np.logical_or),
    "logical_xor": _broadcast(np.logical_xor),
    "pow": power,
    "mod": mod,
    "erf": erf,
    "clip": clip,
    "threshold": threshold,
    "inverse": inverse,
    "log": log,
    "rsqrt": rsqrt,
    "logical_not": logical_not,
    "select": select,
    "cast": cast,
}
