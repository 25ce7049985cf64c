"""Types of MIL values, and the NumPy arrays that hold them here.

A float of any width is held as fp32: in the mode ``declared`` an fp16 tensor holds fp16's values. Integers below a byte
are held as bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

NAMES = {
    1: "bool", 2: "string", 10: "fp16", 11: "fp32", 12: "fp64", 13: "bf16", 21: "int8", 22: "int16", 23: "int32",
    24: "int64", 25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4", 36: "uint2",
    37: "uint1", 38: "uint6", 39: "uint3",
}  # fmt: skip  # the numbers of MIL.proto's DataType
FLOATS = {"fp16", "fp32"}
SIGNED = {"int4", "int8", "int16", "int32", "int64"}
_SUB_BYTE = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}
_STORED: dict[str, Any] = {
    "bool": np.bool_, "fp16": np.float16, "fp32": np.float32, "int8": np.int8, "int16": np.int16, "int32": np.int32,
    "int64": np.int64, "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
}  # fmt: skip
BITS = {name: 8 * np.dtype(stored).itemsize for name, stored in _STORED.items()} | _SUB_BYTE


@dataclass(frozen=True)
class TensorType:
    """A tensor's element type by MIL's name and its shape, None where it is known at run time only."""

    dtype: str
    shape: tuple[int | None, ...] = ()

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        """The shape of a constant. Raises ValueError where a dimension is unknown."""
        if None in self.shape:
            raise ValueError(f"{self} has no fixed shape")
        return tuple(int(d) for d in self.shape if d is not None)

    @property
    def count(self) -> int:
        """Elements of a constant."""
        return math.prod(self.fixed_shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


def storage(dtype: str) -> Any:
    """The NumPy type that a file stores a MIL type as. Raises KeyError for one that has none."""
    return np.dtype(_STORED[dtype])


def held(dtype: str) -> Any:
    """The NumPy type that holds values of a MIL type while the model runs. Raises KeyError for one that has none."""
    if dtype in FLOATS:
        return np.dtype(np.float32)
    if dtype in _SUB_BYTE:
        return np.dtype(np.int8 if dtype in SIGNED else np.uint8)
    return storage(dtype)
