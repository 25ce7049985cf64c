"""Prompts as the I/O contract carries them: slots of (x, y) and a label code. NumPy only.

code  meaning
  1   foreground point
  0   background point
  2   box, top-left corner          3   box, bottom-right corner
 -1   SAM's padding point: a real token that the reference appends to every prompt without a box
 -2   ignored point: a zero embedding, but a token that is attended to
-10   empty slot: excluded from attention exactly
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgesam_deploy.errors import PromptError
from edgesam_deploy.model.transforms import scale_boxes, scale_coords

EMPTY, IGNORED, PADDING, BACKGROUND, FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = -10, -2, -1, 0, 1, 2, 3
LABEL_CODES = {
    "foreground": FOREGROUND,
    "background": BACKGROUND,
    "box_top_left": BOX_TOP_LEFT,
    "box_bottom_right": BOX_BOTTOM_RIGHT,
    "padding_point": PADDING,
    "ignored_point": IGNORED,
    "empty_slot": EMPTY,
}
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Slots:
    """coords (B, N, 2) float32 in model-frame pixels and labels (B, N) float32."""

    coords: FloatArray
    labels: FloatArray

    @property
    def batch(self) -> int:
        return int(self.coords.shape[0])

    @property
    def count(self) -> int:
        return int(self.coords.shape[1])

    def padded(self, count: int) -> Slots:
        """The same prompts in ``count`` slots, the rest empty. Raises PromptError when they do not fit."""
        if self.count > count:
            raise PromptError(
                f"{self.count} prompt slots needed (points, two per box, one padding point without a box), "
                f"but the artifact has {count}; build it with --points {self.count}"
            )
        extra = count - self.count
        coords = np.pad(self.coords, ((0, 0), (0, extra), (0, 0)))
        return Slots(coords, np.pad(self.labels, ((0, 0), (0, extra)), constant_values=EMPTY))


def _array(value: ArrayLike, what: str, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise PromptError(f"{what}: not an array of numbers ({e})") from e
    wanted = "(" + ", ".join("N" if n is None else str(n) for n in shape) + ")"
    if array.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, array.shape, strict=True)):
        raise PromptError(f"{what}: expected shape {wanted}, got {array.shape}")
    if not np.isfinite(array).all():
        raise PromptError(f"{what}: holds NaN or infinity")
    return array


def slots(
    point_coords: ArrayLike | None,
    point_labels: ArrayLike | None,
    boxes: ArrayLike | None,
    *,
    original_size: tuple[int, int],
    image_size: int,
) -> Slots:
    """Slots of B prompts given in pixels of the original picture (height, width).

    point_coords (B, N, 2) as (x, y), point_labels (B, N), boxes (B, 4) as x0, y0, x1, y1; each may be None. Order as
    in the reference: points, then the padding point (prompts without a box only), then the box corners.
    Raises PromptError for shapes or labels that do not fit, and for NaN.
    """
    if (point_coords is None) != (point_labels is None):
        raise PromptError("point_coords and point_labels belong together: give both or neither")
    coords_list: list[FloatArray] = []
    labels_list: list[NDArray[np.float64]] = []
    if point_coords is not None and point_labels is not None:
        coords = _array(point_coords, "point_coords", (None, None, 2))
        labels = _array(point_labels, "point_labels", (None, None))
        if labels.shape != coords.shape[:2]:
            raise PromptError(f"point_labels {labels.shape} do not match point_coords {coords.shape}")
        unknown = sorted(set(labels.ravel().tolist()) - set(LABEL_CODES.values()))
        if unknown:
            raise PromptError(f"point_labels: {unknown[0]:g} is no label code; codes: {sorted(LABEL_CODES.values())}")
        coords_list.append(scale_coords(coords, original_size, image_size))
        labels_list.append(labels)
    if boxes is not None:
        corners = _array(boxes, "boxes", (None, 4))
        if coords_list and len(corners) != len(coords_list[0]):
            raise PromptError(f"{len(corners)} boxes for {len(coords_list[0])} point prompts: the counts must be equal")
        coords_list.append(scale_boxes(corners, original_size, image_size).reshape(-1, 2, 2))
        labels_list.append(np.tile([float(BOX_TOP_LEFT), float(BOX_BOTTOM_RIGHT)], (len(corners), 1)))
    if not coords_list:
        return Slots(np.zeros((1, 0, 2), np.float32), np.zeros((1, 0), np.float32))
    frame = np.concatenate(coords_list, axis=1).astype(np.float32)
    codes = np.concatenate(labels_list, axis=1).astype(np.float32)
    return Slots(frame, codes) if boxes is not None else _with_padding_point(frame, codes)


def _with_padding_point(coords: FloatArray, labels: FloatArray) -> Slots:
    """Append (0, 0) / -1 to each prompt that has no box corner; where only some have one, the others' slot is empty."""
    has_box = np.asarray(np.isin(labels, (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)).any(axis=1))
    if has_box.all() and has_box.size:
        return Slots(coords, labels)
    code = np.where(has_box, EMPTY, PADDING).astype(np.float32)[:, None]
    return Slots(np.pad(coords, ((0, 0), (0, 1), (0, 0))), np.concatenate([labels, code], axis=1))


def check_inside(point_coords: ArrayLike, boxes: ArrayLike, original_size: tuple[int, int]) -> None:
    """Raise PromptError for points (N, 2) or boxes (M, 4) outside the picture, or boxes with swapped corners."""
    height, width = original_size
    points = np.asarray(point_coords, dtype=np.float64).reshape(-1, 2)
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    for x, y in [*points, *corners[:, :2], *corners[:, 2:]]:
        if not (0 <= x <= width and 0 <= y <= height):
            raise PromptError(f"({x:g}, {y:g}) lies outside the picture of {width} x {height} pixels")
    for x0, y0, x1, y1 in corners:
        if x1 <= x0 or y1 <= y0:
            raise PromptError(f"box {x0:g},{y0:g},{x1:g},{y1:g}: expected x0,y0,x1,y1 with x0 < x1 and y0 < y1")
