"""A class per pixel, for pictures of any size, whatever runs the network (CWSAM, arXiv 2401.02326). NumPy and Pillow.

A subclass gives ``infer``. A picture that fits the model's frame is resized to it, without keeping its aspect, and the
logits are resized back; a larger one is cut into overlapping tiles at its own resolution, and where tiles overlap the
more confident one decides. Sizes are ``(height, width)``, boxes ``(x0, y0, x1, y1)`` with exclusive ends.

Noted deviations from the reference (its ``inf_big_img``):

* A picture with one side shorter than the tile is padded right and bottom with black pixels, before normalisation, as
  its ``png_to_tif`` tool does; ``inf_big_img`` itself fails there.
* A tile is always the model's frame; the reference's default of 1024 fails with a model of 512.
* The logits of the whole picture are not kept unless asked for: 33 classes at 20000 x 20000 are 53 GB.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgesam_deploy.errors import EdgeSamDeployError, UsageError
from edgesam_deploy.model.masks import Box
from edgesam_deploy.model.transforms import Size, check_image, strips

FloatArray = NDArray[np.float32]
ClassMap = NDArray[np.unsignedinteger[Any]]
Progress = Callable[[int, int], None]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SemanticResult:
    """What ``SemanticPredictor.predict`` found in an (H, W) picture.

    class_map: (H, W) uint8, or uint16 above 256 classes. confidence: (H, W) float32, the largest softmax probability,
    or None where the model gives class maps alone. logits: (K, H, W) float32 where asked for. tiles: the boxes that
    were run at the picture's own resolution, in order; none where the whole picture was resized.
    """

    class_map: ClassMap
    confidence: FloatArray | None
    logits: FloatArray | None
    tiles: tuple[Box, ...]


class SemanticPredictor(ABC):
    """``predict`` gives every pixel of a picture one of ``classes`` classes; the model's frame is ``image_size``."""

    image_size: int
    classes: int

    @abstractmethod
    def infer(self, image: FloatArray) -> FloatArray:
        """Logits (1, K, S, S) float32 of a picture (1, 3, S, S) float32 that ``preprocess`` made.

        One picture per call: an expert-choice model routes over all tokens of its batch, so its answer for a picture
        would depend on the neighbours.
        """

    @property
    def has_logits(self) -> bool:
        """False for an artifact that gives class maps alone (``--argmax``); it overrides ``infer_map``."""
        return True

    def infer_map(self, image: FloatArray) -> NDArray[Any]:
        """Class map (1, S, S), of integers, of a picture (1, 3, S, S) float32."""
        return np.asarray(self.infer(image).argmax(1))

    def predict(
        self,
        image: NDArray[np.uint8],
        *,
        tiles: bool | None = None,
        overlap: int | None = None,
        return_logits: bool = False,
        progress: Progress | None = None,
    ) -> SemanticResult:
        """The classes of an (H, W, 3) uint8 RGB picture.

        tiles: True cuts the picture into tiles, False resizes the whole, None (default) cuts where a side exceeds the
        model's frame. overlap: pixels that neighbouring tiles share, 0 <= overlap < S; default S // 4, the reference's
        256 at 1024. ``progress(done, total)`` is called after each run of the model.

        Without logits there is no confidence: where tiles overlap the first one decides, and a resized picture gets
        its class map back by nearest neighbour instead of from interpolated logits.

        Raises ImageError for another kind of image, UsageError for an overlap out of range and for logits that the
        model does not give, EdgeSamDeployError for outputs of another shape or with NaN or infinity.
        """
        height, width = check_image(image).shape[:2]
        side = self.image_size
        overlap = side // 4 if overlap is None else overlap
        boxes = tuple(tile_boxes(height, width, side, overlap))
        if return_logits and not self.has_logits:
            raise UsageError("this model gives class maps alone; build it without --argmax to get logits")
        tiled = max(height, width) > side if tiles is None else tiles
        canvas = _Canvas((height, width), self.classes, self.has_logits, return_logits)
        progress = progress or (lambda done, total: None)
        if tiled:
            for done, box in enumerate(boxes, 1):
                self._run_tile(image, box, canvas)
                progress(done, len(boxes))
        else:
            self._run_whole(image, canvas)
            progress(1, 1)
        return canvas.result(boxes if tiled else ())

    def _run_tile(self, image: NDArray[np.uint8], box: Box, canvas: _Canvas) -> None:
        x0, y0, x1, y1 = box
        tile = np.zeros((self.image_size, self.image_size, 3), np.uint8)
        tile[: y1 - y0, : x1 - x0] = image[y0:y1, x0:x1]
        inside = np.s_[: y1 - y0, : x1 - x0]
        if self.has_logits:
            canvas.put_logits(x0, y0, self._logits(normalise(tile))[:, *inside])
        else:
            canvas.put_map(x0, y0, self._map(normalise(tile))[inside])

    def _run_whole(self, image: NDArray[np.uint8], canvas: _Canvas) -> None:
        size = image.shape[0], image.shape[1]
        frame = preprocess(image, self.image_size)
        if not self.has_logits:
            canvas.put_map(0, 0, resize_class_map(self._map(frame), size))
            return
        for top, rows in _resized_rows(self._logits(frame), size):
            canvas.put_logits(0, top, rows)

    def _logits(self, image: FloatArray) -> FloatArray:
        """(K, S, S), checked."""
        logits = np.asarray(self.infer(image))
        _check_shape("logits", logits, (1, self.classes, self.image_size, self.image_size))
        if not np.isfinite(logits).all():
            raise EdgeSamDeployError("the model gave NaN or infinite logits; check its weights and its precision")
        return np.asarray(logits[0], np.float32)

    def _map(self, image: FloatArray) -> NDArray[Any]:
        """(S, S), checked."""
        classes = np.asarray(self.infer_map(image))
        _check_shape("class map", classes, (1, self.image_size, self.image_size))
        if not np.issubdtype(classes.dtype, np.integer) or classes.min() < 0 or classes.max() >= self.classes:
            raise EdgeSamDeployError(
                f"the model's class map must hold integers in 0..{self.classes - 1}, got {classes.dtype}"
                f" {classes.min()}..{classes.max()}; check that the artifact is of this model"
            )
        return np.asarray(classes[0])


def _check_shape(what: str, array: NDArray[Any], wanted: tuple[int, ...]) -> None:
    if array.shape != wanted:
        raise EdgeSamDeployError(
            f"the model's {what} must be {wanted}, got {array.shape}; check that the artifact is of this model"
        )


class _Canvas:
    """The answer for the whole picture while it grows, part by part; the more confident part keeps a pixel."""

    def __init__(self, size: Size, classes: int, has_logits: bool, keep_logits: bool) -> None:
        self.class_map: ClassMap = np.zeros(size, np.dtype(np.uint8 if classes <= 256 else np.uint16))
        # Without logits it only says which pixels are taken: False < True, so the first part wins.
        self.confidence: NDArray[Any] = np.zeros(size, np.float32 if has_logits else np.bool_)
        self.logits = np.zeros((classes, *size), np.float32) if keep_logits else None

    def put_logits(self, left: int, top: int, logits: FloatArray) -> None:
        """Logits (K, h, w) of the part whose corner is (left, top)."""
        self._put(left, top, *_decided(logits), logits)

    def put_map(self, left: int, top: int, classes: NDArray[Any]) -> None:
        """Class map (h, w) of the part whose corner is (left, top)."""
        self._put(left, top, classes, np.ones(classes.shape, np.bool_), None)

    def _put(
        self, left: int, top: int, classes: NDArray[Any], confidence: NDArray[Any], logits: FloatArray | None
    ) -> None:
        there = np.s_[top : top + classes.shape[0], left : left + classes.shape[1]]
        better = self.confidence[there] < confidence
        np.copyto(self.class_map[there], classes, where=better, casting="unsafe")  # every class fits by now
        np.copyto(self.confidence[there], confidence, where=better)
        if self.logits is not None and logits is not None:
            np.copyto(self.logits[:, *there], logits, where=better)

    def result(self, tiles: tuple[Box, ...]) -> SemanticResult:
        confidence = None if self.confidence.dtype == np.bool_ else self.confidence
        return SemanticResult(self.class_map, confidence, self.logits, tiles)


def _decided(logits: FloatArray) -> tuple[ClassMap, FloatArray]:
    """Class map (h, w), the first of equal classes, and its softmax probability (h, w) of logits (K, h, w).

    Class by class, so that the temporaries are planes: argmax along the first axis copies the whole array.
    """
    peak = logits.max(axis=0)
    total = np.zeros_like(peak)
    classes = np.zeros(peak.shape, np.uint16)
    for index in range(len(logits) - 1, -1, -1):
        classes[logits[index] == peak] = index
        total += np.exp(logits[index] - peak)
    return classes, 1 / total


# --- the frame of the model ------------------------------------------------------------------------------------------


def preprocess(image: NDArray[np.uint8], image_size: int) -> FloatArray:
    """(H, W, 3) uint8 RGB to (1, 3, S, S) float32: Pillow's antialiased bilinear, the aspect not kept; normalised."""
    resized = Image.fromarray(check_image(image)).resize((image_size, image_size), Image.Resampling.BILINEAR)
    return normalise(np.asarray(resized))


def normalise(image: NDArray[np.uint8]) -> FloatArray:
    """(H, W, 3) uint8 RGB to (1, 3, H, W) float32 by ImageNet's mean and deviation.

    ``(x / 255 - mean) / std`` with float32 rounding after each step, as torchvision does; ``transforms``, which
    follows SAM, leaves out the division and rounds differently.
    """
    tensor = np.empty((1, 3, *image.shape[:2]), np.float32)
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        plane = tensor[0, channel]
        np.divide(image[:, :, channel], np.float32(255), out=plane, dtype=np.float32)
        plane -= np.float32(mean)
        plane /= np.float32(std)
    return tensor


def _resized_rows(logits: FloatArray, size: Size) -> Iterator[tuple[int, FloatArray]]:
    """Logits (K, S, S) resized to (K, H, W) as (first row, some rows of it): bilinear, align_corners=False.

    In strips, for the whole may not fit into memory; within 1e-5 of PyTorch at logits of standard deviation 8.
    """
    side = logits.shape[-1]
    columns = strips(side, side, side, size[1])
    for strip in strips(side, side, side, size[0]):
        band = strip.weights @ logits[:, strip.lo : strip.hi]
        rows = np.empty((*band.shape[:2], size[1]), np.float32)
        for column in columns:
            rows[:, :, column.start : column.stop] = band[:, :, column.lo : column.hi] @ column.weights.T
        yield strip.start, rows


def resize_class_map(class_map: NDArray[Any], size: Size) -> NDArray[Any]:
    """(h, w) to (H, W) by the nearest pixel centre."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(class_map.shape, size, strict=True)
    )
    return np.asarray(class_map[rows[:, None], columns])


# --- tiles -----------------------------------------------------------------------------------------------------------


def tile_boxes(height: int, width: int, size: int, overlap: int) -> Iterator[Box]:
    """Boxes of the tiles that cover a picture, row by row; max(1, ceil((length - overlap) / (size - overlap))) a side.

    The last one of a row or column is moved back to end at the border, so it may share more than ``overlap`` pixels; a
    side shorter than ``size`` has one tile of its own length. Raises UsageError unless 0 <= overlap < size.
    """
    if not 0 <= overlap < size:
        raise UsageError(f"overlap {overlap}: must be at least 0 and less than the tile's {size} pixels")
    rows, columns = _starts(height, size, overlap), _starts(width, size, overlap)
    for y, x in product(rows, columns):
        yield x, y, min(x + size, width), min(y + size, height)


def _starts(length: int, size: int, overlap: int) -> list[int]:
    step = size - overlap
    count = max(1, ceil((length - overlap) / step))
    return [max(0, min(index * step, length - size)) for index in range(count)]
