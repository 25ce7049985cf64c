"""Masks as data: run lengths, boxes, suppression, grids of points, crops, small regions.

NumPy only; SciPy is imported where it is used. Boxes are (x0, y0, x1, y1) in *inclusive* pixel
coordinates, as in segment-anything: the width ``x1 - x0`` is one less than the number of pixel columns. Masks are
(H, W) bool.

Noted deviations from segment-anything:

* a box's IoU is computed in float64, so one of exactly ``iou_threshold`` is kept; in float32 0.8 rounds up and is lost;
* ``point_grids`` has at least one point per side where ``n / scale**layer`` is below 1 (there: division by zero);
* ``crop_boxes`` leaves out crops that are empty because the picture is smaller than the number of crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgesam_deploy.errors import PromptError, UsageError

Box = tuple[int, int, int, int]


class RLE(TypedDict):
    """COCO's uncompressed run lengths: column by column, starting with the (maybe empty) run of zeros."""

    size: list[int]
    counts: list[int]


class CocoRLE(TypedDict):
    """COCO's compressed run lengths, as JSON annotation files hold them."""

    size: list[int]
    counts: str


# --- run lengths -----------------------------------------------------------------------------------------------------


def mask_to_rle(mask: NDArray[np.bool_], corner: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None) -> RLE:
    """(H, W) bool to run lengths.

    With ``size`` the mask is a window whose first pixel lies at ``corner`` (top, left) of an otherwise empty (H, W)
    picture: only the columns of the window are walked.
    """
    height, width = mask.shape if size is None else size
    top, left = corner
    rows, columns = mask.shape
    if top < 0 or left < 0 or top + rows > height or left + columns > width:
        raise PromptError(f"a mask of {mask.shape} at {corner} does not fit a picture of {(height, width)}")
    # A zero on either side makes every run begin and end at a change.
    walked = np.zeros(columns * height + 2, dtype=np.bool_)
    walked[1:-1].reshape(columns, height)[:, top : top + rows] = mask.T
    changes = np.flatnonzero(walked[1:] != walked[:-1]) + left * height
    counts = np.diff(np.concatenate([[0], changes, [height * width]])).tolist()
    if changes.size and counts[-1] == 0:  # the last run of ones reaches the last pixel
        counts.pop()
    return {"size": [int(height), int(width)], "counts": counts}


def rle_to_mask(rle: RLE) -> NDArray[np.bool_]:
    """Run lengths to (H, W) bool. Raises PromptError where the runs do not fill the size."""
    height, width = rle["size"]
    counts = np.asarray(rle["counts"], dtype=np.int64)
    if (counts < 0).any() or int(counts.sum()) != height * width:
        raise PromptError(f"run lengths sum to {int(counts.sum())}, not to {height} x {width}; the RLE is damaged")
    values = np.arange(counts.size) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def rle_area(rle: RLE) -> int:
    """Number of pixels set."""
    return sum(rle["counts"][1::2])


def rle_to_coco(rle: RLE) -> CocoRLE:
    """Compressed run lengths: each count less the one two before it (from the fourth on), five bits to a character."""
    counts = rle["counts"]
    text = bytearray()
    for index, count in enumerate(counts):
        rest = count - counts[index - 2] if index > 2 else count
        while True:
            bits, rest = rest & 31, rest >> 5
            last = rest == (-1 if bits & 16 else 0)  # the fifth bit is the sign of what follows
            text.append(48 + bits + (0 if last else 32))
            if last:
                break
    return {"size": [int(side) for side in rle["size"]], "counts": text.decode("ascii")}


# --- boxes -----------------------------------------------------------------------------------------------------------


def mask_to_box(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(..., H, W) bool to (..., 4) int64, the tight inclusive box; [0, 0, 0, 0] for an empty mask."""
    masks = np.asarray(masks, dtype=np.bool_)
    box = np.zeros((*masks.shape[:-2], 4), dtype=np.int64)
    if masks.size == 0:
        return box
    for side, axis in ((0, -2), (1, -1)):
        hit = np.asarray(masks.any(axis=axis))
        box[..., side] = hit.argmax(axis=-1)
        box[..., side + 2] = hit.shape[-1] - 1 - hit[..., ::-1].argmax(axis=-1)
    box[~masks.any(axis=(-2, -1))] = 0
    return box


def stack_boxes(boxes: Sequence[ArrayLike]) -> NDArray[np.int64]:
    """(N, 4) int64 of N boxes; (0, 4) for none, where ``numpy.array`` alone would lose the second dimension."""
    return np.array(boxes, dtype=np.int64).reshape(-1, 4)


def box_xyxy_to_xywh(boxes: ArrayLike) -> NDArray[Any]:
    """(..., 4) corners to (..., 4) of (x0, y0, x1 - x0, y1 - y0), in the dtype given."""
    corners = np.array(boxes)
    corners[..., 2:] -= corners[..., :2]
    return corners


def nms(boxes: ArrayLike, scores: ArrayLike, iou_threshold: float) -> NDArray[np.int64]:
    """Indices of the boxes kept by greedy non-maximum suppression, by descending score, ties in the order given.

    ``boxes`` (N, 4), ``scores`` (N,). A box is dropped where its IoU with a kept one is above ``iou_threshold``; two
    boxes of zero area have no IoU and suppress nothing.
    """
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    ranks = np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(corners) != len(ranks):
        raise PromptError(f"{len(corners)} boxes but {len(ranks)} scores")
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    order = np.argsort(-ranks, kind="stable")
    kept = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        order = rest[~(_iou(corners[best], areas[best], corners[rest], areas[rest]) > iou_threshold)]
    return np.array(kept, dtype=np.int64)


def _iou(
    box: NDArray[np.float64], area: np.float64, others: NDArray[np.float64], areas: NDArray[np.float64]
) -> NDArray[np.float64]:
    """IoU of one box (4,) with others (N, 4); NaN where the union has no area."""
    extent = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared: NDArray[np.float64] = np.maximum(extent, 0.0).prod(axis=1)
    union = area + areas - shared
    iou = np.full_like(shared, np.nan)
    np.divide(shared, union, out=iou, where=union != 0)
    return iou


def is_box_near_crop_edge(boxes: ArrayLike, crop_box: Box, image_box: Box, atol: float = 20.0) -> NDArray[np.bool_]:
    """(N,) bool: a side of the box lies within ``atol`` pixels of its crop's side, and not of the picture's.

    ``boxes`` (N, 4) are in the crop's frame, ``crop_box`` and ``image_box`` in the picture's. Such a mask is cut off by
    the crop; a neighbouring crop or the whole picture sees it whole.
    """
    x0, y0, _, _ = crop_box
    placed = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) + np.array([x0, y0, x0, y0])
    near_crop = np.abs(placed - np.array(crop_box)) <= atol
    near_image = np.abs(placed - np.array(image_box)) <= atol
    return np.asarray((near_crop & ~near_image).any(axis=1))


# --- points and crops ------------------------------------------------------------------------------------------------


def point_grid(points_per_side: int) -> NDArray[np.float64]:
    """(n * n, 2) of (x, y) in 0..1, row by row: the centres of n x n equal cells."""
    if points_per_side < 1:
        raise UsageError(f"points_per_side must be at least 1, got {points_per_side}")
    offset = 1.0 / (2 * points_per_side)
    side = np.linspace(offset, 1.0 - offset, points_per_side)
    x, y = np.meshgrid(side, side)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def point_grids(points_per_side: int, crop_layers: int, downscale: int) -> list[NDArray[np.float64]]:
    """One grid per layer 0..crop_layers; layer i has ``int(n / downscale**i)`` points per side, at least 1."""
    if downscale < 1:
        raise UsageError(f"crop_n_points_downscale_factor must be at least 1, got {downscale}")
    point_grid(points_per_side)  # refuses a bad number before the clamp hides it
    return [point_grid(max(1, int(points_per_side / downscale**layer))) for layer in range(crop_layers + 1)]


def crop_boxes(size: tuple[int, int], crop_layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
    """(box, layer) of the whole (H, W) picture and of its crops, boxes as (x0, y0, x1, y1) with exclusive ends.

    Layer i >= 1 has ``2**i`` crops a side, neighbours sharing ``int(overlap_ratio * short_side * 2 / 2**i)`` pixels.
    """
    height, width = size
    boxes: list[tuple[Box, int]] = [((0, 0, width, height), 0)]
    for layer in range(1, crop_layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / per_side))
        columns = _crop_spans(width, per_side, overlap)
        rows = _crop_spans(height, per_side, overlap)
        boxes += [((x0, y0, x1, y1), layer) for (x0, x1), (y0, y1) in product(columns, rows)]
    return boxes


def _crop_spans(length: int, count: int, overlap: int) -> list[tuple[int, int]]:
    """``count`` equal spans that cover 0..length, each sharing ``overlap`` with the next; empty ones left out."""
    side = ceil((length + overlap * (count - 1)) / count)
    starts = [index * (side - overlap) for index in range(count)]
    return [(start, min(start + side, length)) for start in starts if start < length]


# --- small regions ---------------------------------------------------------------------------------------------------


def remove_small_regions(
    mask: NDArray[np.bool_], min_area: float, mode: Literal["holes", "islands"]
) -> tuple[NDArray[np.bool_], bool]:
    """(H, W) bool without its holes or islands of fewer than ``min_area`` pixels, and whether there was any.

    Regions touch by side or corner (8-connectivity). Of islands that are all too small the largest stays.
    Raises MissingToolkit where SciPy is not installed.
    """
    if mode not in ("holes", "islands"):
        raise UsageError(f"mode must be 'holes' or 'islands', got {mode!r}")
    from scipy import ndimage

    labels, _ = ndimage.label(~mask if mode == "holes" else mask, structure=np.ones((3, 3), dtype=np.int64))
    areas = np.bincount(labels.ravel())
    areas[0] = 0  # label 0 is what was not searched
    small = areas < min_area
    small[0] = False
    if not small.any():
        return mask, False
    if mode == "holes":
        return mask | small[labels], True
    keep = ~small
    keep[0] = False
    if not keep.any():
        keep[areas.argmax()] = True
    return keep[labels], True
