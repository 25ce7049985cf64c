"""Compressed weights as iOS 16 to 18 store them, and quantisation of activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgesam_deploy.errors import BundleError
from edgesam_deploy.targets.coreml.interpreter.numerics import Array
from edgesam_deploy.targets.coreml.interpreter.operators.arguments import integer, integers


def _along(x: Array, axis: Any, rank: int) -> Array:
    """A scalar, or a vector shaped to broadcast along ``axis``."""
    if x.ndim == 0:
        return x
    shape = [1] * rank
    shape[integer(axis)] = x.size
    return x.reshape(shape)


def affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Array:
    """scale * (data - zero_point), both scalars or along ``axis``."""
    rank = quantized_data.ndim
    shifted = quantized_data.astype(np.float32) - _along(zero_point, axis, rank).astype(np.float32)
    return shifted * _along(scale, axis, rank)


def constexpr_cast(source_val: Array, output_dtype: str) -> Array:
    return source_val.astype(np.float32)


def _per_block(x: Array, shape: tuple[int, ...]) -> Array:
    """One value per block repeated over the blocks of ``shape``. Raises BundleError where they do not divide it."""
    if x.ndim != len(shape) or any(size % blocks for size, blocks in zip(shape, x.shape, strict=True)):
        raise BundleError(f"blocks {x.shape} do not divide a weight {shape}; build the package again")
    for axis, (size, blocks) in enumerate(zip(shape, x.shape, strict=True)):
        x = x if size == blocks else np.repeat(x, size // blocks, axis)
    return x


def blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """scale * (data - offset), one scale and offset per block."""
    shifted = data.astype(np.float32)
    if offset is not None:
        shifted -= _per_block(offset, data.shape).astype(np.float32)
    return shifted * _per_block(scale, data.shape)


def lut_to_dense(indices: Array, lut: Array, shape: Any = None, vector_axis: Any = None) -> Array:
    """A value of ``lut`` per index. iOS 16: ``indices`` packed bytes of log2(size of lut) bits, and ``shape``; iOS 18:
    ``lut`` (*blocks of indices, palettes, vector), a vector going along ``vector_axis``.
    """
    if shape is not None:
        return lut[_packed_indices(indices, lut.size, math.prod(integers(shape)))].reshape(integers(shape))
    blocks, vector = lut.shape[:-2], lut.shape[-1]
    table = lut.reshape(-1, lut.shape[-2], vector)
    block = _per_block(np.arange(len(table)).reshape(blocks), indices.shape)
    dense = table[block, indices.astype(np.intp)]  # (*indices, vector)
    if vector == 1:
        return dense[..., 0]
    where = integer(vector_axis) % indices.ndim
    moved = np.moveaxis(dense, -1, where + 1)
    return moved.reshape([size * vector if i == where else size for i, size in enumerate(indices.shape)])


def _packed_indices(packed: Array, palettes: int, count: int) -> Array:
    bits = palettes.bit_length() - 1
    singles = np.unpackbits(packed, count=bits * count, bitorder="little").reshape(count, bits)
    return singles @ (1 << np.arange(bits))


def sparse_to_dense(nonzero_data: Array, mask: Array, shape: Any = None) -> Array:
    """Zeros but where ``mask`` is set. iOS 16: the mask packed into bytes, and ``shape``; iOS 18: of that shape."""
    if shape is not None:
        sizes = integers(shape)
        mask = np.unpackbits(mask, count=math.prod(sizes), bitorder="little").reshape(sizes)
    if int(np.count_nonzero(mask)) != nonzero_data.size:
        raise BundleError(f"a mask of {np.count_nonzero(mask)} values for {nonzero_data.size}; build the package again")
    out = np.zeros(mask.shape, nonzero_data.dtype)
    out[mask != 0] = nonzero_data.reshape(-1)
    return out


def lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: Any = None
) -> tuple[Array, Array]:
    """The mask and the values it selects, for sparse_to_dense."""
    dense = lut_to_dense(sparse_to_dense(indices_nonzero_data, indices_mask), lut, vector_axis=vector_axis)
    vector = lut.shape[-1]
    mask = indices_mask if vector == 1 else np.repeat(indices_mask, vector, axis=integer(vector_axis))
    return mask, dense[mask != 0]


def sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    dense = blockwise_shift_scale(sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


def quantize(
    input: Array, scale: Array, output_dtype: str, zero_point: Array | None = None, axis: Any = 0
) -> Array:  # the parameter's name is MIL's
    """round(input / scale) + zero_point, saturated."""
    kind = np.dtype(output_dtype)
    steps = np.rint(input / _along(scale, axis, input.ndim))
    if zero_point is not None:
        steps = steps + _along(zero_point, axis, input.ndim).astype(np.float32)
    limits = np.iinfo(kind)
    return np.clip(steps, limits.min, limits.max).astype(kind)


def dequantize(input: Array, scale: Array, zero_point: Array | None = None, axis: Any = 0) -> Array:
    shifted = input.astype(np.float32)
    if zero_point is not None:
        shifted -= _along(zero_point, axis, input.ndim).astype(np.float32)
    return shifted * _along(scale, axis, input.ndim)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_cast": constexpr_cast,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_sparse_to_dense": sparse_to_dense,
    "constexpr_lut_to_sparse": lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": sparse_blockwise_shift_scale,
    "quantize": quantize,
    "dequantize": dequantize,
}
