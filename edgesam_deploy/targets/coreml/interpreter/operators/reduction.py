"""Reductions over some axes, all of them by default; the axes go unless ``keep_dims``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgesam_deploy.targets.coreml.interpreter.numerics import Array
from edgesam_deploy.targets.coreml.interpreter.operators.arguments import flag, integer, integers


def _over(function: Callable[..., Any]) -> Callable[..., Array]:
    """``function(x, axis=, keepdims=)`` as an operator. A result of Python's numbers keeps the type of ``x``."""

    def operator(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
        axis = None if axes is None else tuple(integers(axes))
        return np.asarray(function(x, axis=axis, keepdims=flag(keep_dims)))

    return operator


def _log_sum_exp(x: Array, axis: tuple[int, ...] | None, keepdims: bool) -> Array:
    largest = x.max(axis=axis, keepdims=True)
    total: Array = np.log(np.exp(x - largest).sum(axis=axis, keepdims=True)) + largest
    return total if keepdims else np.squeeze(total, axis=axis)


def _arg(function: Callable[..., Any]) -> Callable[..., Array]:
    def operator(x: Array, axis: Any = -1, keep_dims: Any = False, output_dtype: str = "int32") -> Array:
        return np.asarray(function(x, axis=integer(axis), keepdims=flag(keep_dims))).astype(np.dtype(output_dtype))

    return operator


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "reduce_max": _over(np.max),
    "reduce_min": _over(np.min),
    "reduce_sum": _over(np.sum),
    "reduce_mean": _over(np.mean),
    "reduce_prod": _over(np.prod),
    "reduce_sum_square": _over(lambda x, axis, keepdims: np.sum(x * x, axis=axis, keepdims=keepdims)),
    "reduce_l1_norm": _over(lambda x, axis, keepdims: np.sum(np.abs(x), axis=axis, keepdims=keepdims)),
    "reduce_l2_norm": _over(lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims))),
    "reduce_log_sum": _over(lambda x, axis, keepdims: np.log(np.sum(x, axis=axis, keepdims=keepdims))),
    "reduce_log_sum_exp": _over(_log_sum_exp),
    "reduce_argmax": _arg(np.argmax),
    "reduce_argmin": _arg(np.argmin),
}
