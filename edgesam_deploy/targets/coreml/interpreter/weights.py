"""weight.bin: a 64-byte header (count, version 2), then blobs, each behind a 64-byte record that the model points at.

A record: u32 0xDEADBEEF, u32 element type, u64 size in bytes, u64 offset of the data, u64 unused bits at its end (of
types below a byte). All little-endian, data aligned to 64 bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.errors import BundleError
from edgesam_deploy.targets.coreml.interpreter.types import BITS, SIGNED, TensorType, storage

VERSION = 2
_HEADER = struct.Struct("<II56x")
_RECORD = struct.Struct("<IIQQQ32x")
_SENTINEL = 0xDEADBEEF
CODES = {
    "fp16": 1, "fp32": 2, "uint8": 3, "int8": 4, "bf16": 5, "int16": 6, "uint16": 7, "int4": 8, "uint1": 9,
    "uint2": 10, "uint4": 11, "uint3": 12, "uint6": 13, "int32": 14, "uint32": 15,
}  # fmt: skip


@dataclass(frozen=True)
class WeightFile:
    """A weight file, mapped; ``read`` gives an array per record."""

    path: Path
    data: NDArray[np.uint8]

    def read(self, offset: int, kind: TensorType) -> NDArray[Any]:
        """The constant whose record is at ``offset``, in the declared type and shape. Raises BundleError otherwise."""
        where = f"{self.path.name} at offset {offset}"
        if offset % 64 or not _HEADER.size <= offset <= self.data.size - _RECORD.size:
            raise _damaged(self.path, f"no record at offset {offset} of {self.data.size} bytes")
        sentinel, code, size, start, unused = _RECORD.unpack(self.data[offset : offset + _RECORD.size].tobytes())
        if sentinel != _SENTINEL:
            raise _damaged(self.path, f"{where}: not a record (it starts with {sentinel:#x})")
        if code != CODES.get(kind.dtype):
            raise _damaged(self.path, f"{where}: element type {code}, the model declares {kind}")
        if start + size > self.data.size:
            raise _damaged(self.path, f"{where}: data ends at {start + size}, the file has {self.data.size} bytes")
        count = kind.count
        if (8 * size - unused) != count * BITS[kind.dtype]:
            raise _damaged(self.path, f"{where}: {size} bytes, the model declares {kind}")
        return unpacked(self.data[start : start + size], kind)


def open_weights(path: Path) -> WeightFile:
    """The file mapped into memory. Raises BundleError for one that is missing or not of version 2."""
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as e:  # ValueError: an empty file
        raise _damaged(path, str(e)) from e
    if data.size < _HEADER.size:
        raise _damaged(path, f"{data.size} bytes, a header has {_HEADER.size}")
    _, version = _HEADER.unpack(data[: _HEADER.size].tobytes())
    if version != VERSION:
        raise _damaged(path, f"storage version {version}, this reads {VERSION}")
    return WeightFile(path, np.asarray(data))


def unpacked(data: NDArray[np.uint8], kind: TensorType) -> NDArray[Any]:
    """Raw bytes as an array of the type's shape; elements below a byte are packed from the least significant bit.

    Raises ValueError where the bytes do not fit the type.
    """
    bits = BITS[kind.dtype]
    if bits >= 8:
        return np.asarray(data.view(storage(kind.dtype))).reshape(kind.fixed_shape)
    if data.size * 8 < kind.count * bits:
        raise ValueError(f"{data.size} bytes for {kind}")
    singles = np.unpackbits(data, count=kind.count * bits, bitorder="little").reshape(-1, bits)
    values: NDArray[Any] = singles @ (1 << np.arange(bits)).astype(np.uint8)
    if kind.dtype in SIGNED:
        values = ((values.astype(np.int8) ^ (1 << bits - 1)) - (1 << bits - 1)).astype(np.int8)
    return values.reshape(kind.fixed_shape)


def _damaged(path: Path, what: str) -> BundleError:
    return BundleError(f"{path}: {what}; edgesam-deploy verify tells if it is damaged")
