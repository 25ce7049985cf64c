"""What a model's interface says about its inputs beyond their tensors: pictures, and sizes that may vary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgesam_deploy.errors import UsageError
from edgesam_deploy.targets.coreml.interpreter.numerics import Array
from edgesam_deploy.targets.coreml.interpreter.types import FLOATS, TensorType, held

RGB, BGR = 20, 30  # FeatureTypes.proto: ImageFeatureType.ColorSpace


@dataclass(frozen=True)
class Feature:
    """An input. ``colors``: the colour space of a picture, or None; ``ranges``: (least, most) per dimension, most -1
    for no bound; ``shapes``: the only shapes it may have, where they are listed.
    """

    name: str
    colors: int | None = None
    ranges: tuple[tuple[int, int], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()

    def fed(self, array: Array, kind: TensorType) -> Array:
        """``array`` as the function takes it. Raises UsageError for another shape or type.

        A picture may come as (H, W, 3) RGB, or (H, W) grey, values 0 to 255; scale and bias are operators inside.
        """
        if self.colors is not None:
            array = _planes(array, self.colors)
        if not self._fits(array.shape, kind):
            raise UsageError(f"input {self.name} has shape {array.shape}; the model takes {kind}{self._limits()}")
        if array.dtype.kind not in ("biuf" if kind.dtype in FLOATS else "biu"):
            raise UsageError(f"input {self.name} is {array.dtype}; the model takes {kind}")
        return np.asarray(array.astype(held(kind.dtype), copy=False), order="C")

    def _fits(self, shape: tuple[int, ...], kind: TensorType) -> bool:
        if len(shape) != len(kind.shape) or any(
            d is not None and d != n for n, d in zip(shape, kind.shape, strict=True)
        ):
            return False
        if self.shapes and shape not in self.shapes:
            return False
        return not self.ranges or all(
            low <= n and (high == -1 or n <= high) for n, (low, high) in zip(shape, self.ranges, strict=True)
        )

    def _limits(self) -> str:
        if self.shapes:
            return f", one of {', '.join(map(str, self.shapes))}"
        return f", sizes within {self.ranges}" if self.ranges else ""


def _planes(array: Array, colors: int) -> Array:
    if array.ndim == 2:
        return array[None, None]
    if array.ndim != 3:
        return array  # channels first already, in the model's order
    planes = array.transpose(2, 0, 1)[None]
    return planes[:, ::-1] if colors == BGR else planes


def features(description: Any, function: str) -> Mapping[str, Feature]:
    """The inputs of ``function`` by name, from a protobuf ModelDescription."""
    chosen = next((f for f in description.functions if f.name == function), description)
    return {entry.name: _feature(entry) for entry in chosen.input}


def _feature(entry: Any) -> Feature:
    kind = entry.type.WhichOneof("Type")
    if kind == "imageType":
        return Feature(entry.name, colors=int(entry.type.imageType.colorSpace))
    array = entry.type.multiArrayType
    # an interval without bounds is written as (1, -1)
    ranges = tuple((int(r.lowerBound), int(r.upperBound)) for r in array.shapeRange.sizeRanges)
    shapes = tuple(tuple(int(n) for n in s.shape) for s in array.enumeratedShapes.shapes)
    return Feature(entry.name, ranges=ranges, shapes=shapes)
