"""Resizing of the last two axes. A bilinear one is the same interpolation along each axis in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgesam_deploy.errors import UnsupportedOperators
from edgesam_deploy.targets.coreml.interpreter.numerics import Array
from edgesam_deploy.targets.coreml.interpreter.operators.arguments import flag, integer, integers

SAMPLING_MODES = ("DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def grid_points(size: int, wanted: int, mode: str) -> Array:
    """(wanted,) positions between 0 and ``size - 1`` at which an axis of ``size`` values is sampled."""
    steps = np.arange(wanted, dtype=np.float64)
    if mode == "UNALIGN_CORNERS":
        points = (steps + 0.5) * size / wanted - 0.5
    elif mode == "OFFSET_CORNERS":
        points = (steps + 0.5) * max(1, size - 1) / wanted
    elif mode == "DEFAULT":
        points = steps * size / wanted
    elif mode == "ALIGN_CORNERS" and wanted == 1:
        points = np.array([(size - 1) / 2])
    elif mode in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        points = steps * ((size - 1) / max(wanted - 1, 1))
    else:
        raise UnsupportedOperators(f"sampling mode {mode}; known: {', '.join(SAMPLING_MODES)}")
    return np.asarray(np.clip(points, 0, size - 1))


def _interpolated(x: Array, axis: int, points: Array) -> Array:
    lower = np.floor(points).astype(np.intp)
    upper = np.minimum(lower + 1, x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = len(points)
    share = (points - lower).astype(np.float32).reshape(shape)
    first: Array = np.take(x, lower, axis=axis)
    second: Array = np.take(x, upper, axis=axis)
    second -= first
    second *= share
    second += first
    return second


def _bilinear(x: Array, height: int, width: int, mode: str) -> Array:
    x = x.astype(np.float32, copy=False)
    rows = _interpolated(x, x.ndim - 2, grid_points(x.shape[-2], height, mode))
    return _interpolated(rows, x.ndim - 1, grid_points(x.shape[-1], width, mode))


def _nearest(x: Array, height: int, width: int) -> Array:
    """Of an output pixel the input pixel at floor(i * size / wanted)."""
    rows = np.take(x, np.arange(height) * x.shape[-2] // height, axis=-2)
    return np.asarray(np.take(rows, np.arange(width) * x.shape[-1] // width, axis=-1))


def _scaled(x: Array, scale_height: Any, scale_width: Any) -> tuple[int, int]:
    factors = (np.asarray(s).reshape(())[()] for s in (scale_height, scale_width))
    height, width = (int(np.floor(f * n)) for f, n in zip(factors, x.shape[-2:], strict=True))
    return height, width


def resize_bilinear(
    x: Array, target_size_height: Any = 1, target_size_width: Any = 1, sampling_mode: str = "DEFAULT"
) -> Array:
    return _bilinear(x, integer(target_size_height), integer(target_size_width), sampling_mode)


def upsample_bilinear(
    x: Array, scale_factor_height: Any = 1, scale_factor_width: Any = 1, align_corners: Any = True,
    half_pixel_centers: Any = None,
) -> Array:  # fmt: skip
    """``half_pixel_centers`` is the opposite of ``align_corners`` unless given; neither samples from the corner on."""
    aligned = flag(align_corners)
    centred = not aligned if half_pixel_centers is None else flag(half_pixel_centers)
    if aligned and centred:
        raise UnsupportedOperators("upsample_bilinear with both align_corners and half_pixel_centers")
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if centred else "DEFAULT"
    return _bilinear(x, *_scaled(x, scale_factor_height, scale_factor_width), mode)


def resize_nearest_neighbor(x: Array, target_size_height: Array, target_size_width: Array) -> Array:
    return _nearest(x, integer(target_size_height), integer(target_size_width))


def upsample_nearest_neighbor(x: Array, scale_factor_height: Any = 1, scale_factor_width: Any = 1) -> Array:
    return _nearest(x, *_scaled(x, scale_factor_height, scale_factor_width))


def resize(
    x: Array, shape: Array, resized_dims: Array, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> Array:
    """The last ``resized_dims`` of ``shape`` are the new sizes of the last axes; 0 keeps one."""
    count = integer(resized_dims)
    wanted = [size or old for size, old in zip(integers(shape)[-count:], x.shape[-count:], strict=True)]
    if interpolation_mode == "LINEAR":
        for axis, size in enumerate(wanted, x.ndim - count):
            x = _interpolated(x.astype(np.float32, copy=False), axis, grid_points(x.shape[axis], size, sampling_mode))
        return x
    if interpolation_mode != "NEAREST_NEIGHBOR" or sampling_mode != "DEFAULT":
        raise UnsupportedOperators(f"resize with {interpolation_mode} and {sampling_mode}; nearest needs DEFAULT")
    for axis, size in enumerate(wanted, x.ndim - count):
        x = np.take(x, np.arange(size) * x.shape[axis] // size, axis=axis)
    return x


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "resize_bilinear": resize_bilinear,
    "upsample_bilinear": upsample_bilinear,
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
    "resize": resize,
}
