"""Everything-mode: masks of all objects of a picture, from a grid of single-point prompts.

NumPy only, over any ``Predictor``: the PyTorch model or an artifact on any runtime. Follows EdgeSAM's
``SamAutomaticMaskGenerator`` (segment-anything's, with the stability score in place of the predicted IoU).

Noted deviations from the reference:

* that ``predicted_iou`` is the low-res stability score is EdgeSAM's silent default; here it is the argument
  ``use_stability_score``, and False gives the model's own IoU;
* an empty mask has stability 0, not NaN;
* a picture on which nothing survives gives an empty list, with crops too (there: IndexError);
* a grid scaled down below one point keeps one (there: division by zero), and crops that are empty because the picture
  is tiny are left out;
* only masks that survive the first filter are brought to full size, and of those only the part that can be set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgesam_deploy.errors import UnknownName, UsageError
from edgesam_deploy.model.masks import (
    RLE,
    Box,
    CocoRLE,
    box_xyxy_to_xywh,
    crop_boxes,
    is_box_near_crop_edge,
    mask_to_box,
    mask_to_rle,
    nms,
    point_grids,
    remove_small_regions,
    rle_area,
    rle_to_coco,
    rle_to_mask,
    stack_boxes,
)
from edgesam_deploy.model.prompts import FOREGROUND, PADDING
from edgesam_deploy.model.transforms import check_image, resize_mask_window, scale_coords, stability_score

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
Progress = Callable[[int, int], None]

# The offset of the score that ranks masks; the reference fixes it, apart from ``stability_score_offset``.
_RANKING_OFFSET = 1.0


class Predictor(Protocol):
    """What everything-mode needs of a model on any runtime. Sizes are (height, width)."""

    @property
    def image_size(self) -> int:
        """Long side S of the model frame, in pixels."""

    @property
    def mask_threshold(self) -> float:
        """A mask is where its logits exceed this."""

    @property
    def original_size(self) -> tuple[int, int]:
        """Of the image last set."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Of the image last set, resized to long side S."""

    def set_image(self, image: NDArray[np.uint8], /) -> Any:
        """Encode an (H, W, 3) uint8 RGB image; later prompts are about it."""

    def predict_slots(
        self, point_coords: NDArray[np.float32], point_labels: NDArray[np.float32], /
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Masks for B prompts of N slots each.

        ``point_coords`` (B, N, 2) in model-frame pixels, ``point_labels`` (B, N). Gives low-res logits (B, 4, h, w) and
        scores (B, 4), the single-mask token first; models with one mask (HQ) give (B, 1, h, w) and (B, 1).
        """


class MaskRecord(TypedDict):
    """One mask of the picture, under segment-anything's keys."""

    segmentation: NDArray[np.bool_] | RLE | CocoRLE
    """(H, W) bool, or run lengths, as ``output_mode`` says."""
    area: int
    """Pixels set."""
    bbox: list[int]
    """(x, y, w, h) from inclusive pixel coordinates: w is one less than the number of columns."""
    predicted_iou: float
    """The score masks are ranked by: low-res stability, or the model's own IoU."""
    point_coords: list[list[float]]
    """[[x, y]] of the prompt, in original pixels."""
    stability_score: float
    """On full-size logits, with ``stability_score_offset``; 0..1."""
    crop_box: list[int]
    """(x, y, w, h) of the crop the mask was found in."""


class _Candidate(NamedTuple):
    """A mask between the filters, in the frame of the whole picture; kept as run lengths to bound the memory."""

    rle: RLE
    box: NDArray[np.int64]
    score: float
    stability: float
    point: NDArray[np.float64]
    crop: Box


class SamAutomaticMaskGenerator:
    """Masks of everything in a picture: prompt with a grid of points, filter by quality, remove duplicates.

    Arguments and defaults are segment-anything's:

    * ``model``: a ``Predictor``, or a model from ``edgesam_deploy.model``, which is wrapped in a ``SamPredictor``.
    * ``points_per_side``: the grid has its square of points; None where ``point_grids`` gives the points.
    * ``points_per_batch``: prompts per call of the predictor.
    * ``pred_iou_thresh``: keep scores above it (0..1); 0 or less keeps all.
    * ``stability_score_thresh``: keep full-size stability of at least this (0..1); 0 or less keeps all.
    * ``stability_score_offset``: logits by which the cut moves up and down for that score.
    * ``box_nms_thresh``: IoU above which the lower-scored of two masks of one crop is dropped.
    * ``crop_n_layers``: layers of crops to run beside the whole picture; layer i has ``4**i`` crops.
    * ``crop_nms_thresh``: as ``box_nms_thresh``, between crops; the mask from the smaller crop stays.
    * ``crop_overlap_ratio``: of the picture's short side shared by neighbours in layer 1; halved in each further layer.
    * ``crop_n_points_downscale_factor``: layer i has ``points_per_side / factor**i`` points a side.
    * ``point_grids``: per layer an (n, 2) array of (x, y) in 0..1, instead of ``points_per_side``.
    * ``min_mask_region_area``: fill holes and drop islands of fewer original pixels (needs SciPy); 0 for none.
    * ``output_mode``: ``binary_mask``, ``uncompressed_rle`` or ``coco_rle``.

    and beyond them:

    * ``use_stability_score``: rank and filter by the low-res stability score, as EdgeSAM does since its predicted IoU
      was not distilled; False for the model's predicted IoU (SAM's behaviour).
    * ``num_multimask_outputs``: masks tried per point: 3 (multi-mask tokens), 1 (single-mask token) or 4 (all).

    Raises UsageError for values that do not fit.
    """

    def __init__(
        self,
        model: Any,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[ArrayLike] | None = None,
        min_mask_region_area: int = 0,
        output_mode: OutputMode = "binary_mask",
        *,
        use_stability_score: bool = True,
        num_multimask_outputs: int = 3,
    ) -> None:
        _check_at_least("points_per_batch", points_per_batch, 1)
        _check_at_least("crop_n_layers", crop_n_layers, 0)
        _check_at_least("stability_score_offset", stability_score_offset, 0)
        if num_multimask_outputs not in (1, 3, 4):
            raise UsageError(f"num_multimask_outputs must be 1, 3 or 4, got {num_multimask_outputs}")
        if output_mode not in get_args(OutputMode):
            raise UnknownName("output_mode", output_mode, get_args(OutputMode))
        self.predictor = _as_predictor(model)
        self.point_grids = _grids(points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor)
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        self.use_stability_score = use_stability_score
        self.num_multimask_outputs = num_multimask_outputs

    def generate(self, image: NDArray[np.uint8], progress: Progress | None = None) -> list[MaskRecord]:
        """Records of the masks of an (H, W, 3) uint8 RGB image, in the order the last suppression gave; maybe none.

        ``progress(done, total)`` is called with the number of prompts after each batch. The predictor is left with the
        last crop set. Raises ImageError for another kind of image.
        """
        image = check_image(image)
        crops = crop_boxes((image.shape[0], image.shape[1]), self.crop_n_layers, self.crop_overlap_ratio)
        total = sum(len(self.point_grids[layer]) for _, layer in crops)
        done = 0
        found: list[_Candidate] = []
        for crop, layer in crops:
            in_crop: list[_Candidate] = []
            for prompts, candidates in self._walk_crop(image, crop, self.point_grids[layer]):
                in_crop += candidates
                done += prompts
                if progress is not None:
                    progress(done, total)
            found += _suppress(in_crop, [candidate.score for candidate in in_crop], self.box_nms_thresh)
        if len(crops) > 1:
            found = _suppress(found, [1.0 / _extent(candidate.crop) for candidate in found], self.crop_nms_thresh)
        if self.min_mask_region_area > 0:
            threshold = max(self.box_nms_thresh, self.crop_nms_thresh)
            found = _clean_regions(found, self.min_mask_region_area, threshold)
        return [self._record(candidate) for candidate in found]

    def _walk_crop(
        self, image: NDArray[np.uint8], crop: Box, grid: NDArray[np.float64]
    ) -> Iterator[tuple[int, list[_Candidate]]]:
        """Per batch of one crop, the number of prompts and what survived of them."""
        x0, y0, x1, y1 = crop
        self.predictor.set_image(np.ascontiguousarray(image[y0:y1, x0:x1]))
        points = grid * np.array([x1 - x0, y1 - y0])
        for start in range(0, len(points), self.points_per_batch):
            batch = points[start : start + self.points_per_batch]
            yield len(batch), self._batch_candidates(batch, crop, (image.shape[0], image.shape[1]))

    def _batch_candidates(
        self, points: NDArray[np.float64], crop: Box, image_size: tuple[int, int]
    ) -> list[_Candidate]:
        """What survives of one batch; ``points`` (B, 2) in the crop's pixels."""
        masks, scores = self._predict(points)
        prompts, slots = np.nonzero(scores > self.pred_iou_thresh if self.pred_iou_thresh > 0 else np.ones_like(scores))
        candidates = []
        for prompt, slot in zip(prompts, slots, strict=True):
            found = self._examine(masks[prompt, slot], float(scores[prompt, slot]), points[prompt], crop, image_size)
            if found is not None:
                candidates.append(found)
        return candidates

    def _predict(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Low-res logits (B, K, h, w) and ranking scores (B, K) of the K slots asked for."""
        coords = np.zeros((len(points), 2, 2), dtype=np.float32)
        coords[:, 0] = scale_coords(points, self.predictor.original_size, self.predictor.image_size)
        # The second slot is the padding point that the reference appends to every prompt without a box.
        labels = np.tile(np.array([FOREGROUND, PADDING], dtype=np.float32), (len(points), 1))
        masks, scores = self.predictor.predict_slots(coords, labels)
        self._check_answer(masks, scores, len(points))
        if masks.shape[1] == 4:
            slots = {1: slice(0, 1), 3: slice(1, 4), 4: slice(0, 4)}[self.num_multimask_outputs]
            masks, scores = masks[:, slots], scores[:, slots]
        if self.use_stability_score:
            scores = stability_score(masks, self.predictor.mask_threshold, _RANKING_OFFSET)
        return masks, scores

    def _check_answer(self, masks: NDArray[np.float32], scores: NDArray[np.float32], prompts: int) -> None:
        if masks.ndim == 4 and masks.shape[:2] == scores.shape and scores.shape in ((prompts, 4), (prompts, 1)):
            return
        raise UsageError(
            f"{type(self.predictor).__name__}.predict_slots gave masks {masks.shape} and scores {scores.shape} for"
            f" {prompts} prompts; expected (B, 4, h, w) and (B, 4)"
        )

    def _examine(
        self,
        logits: NDArray[np.float32],
        score: float,
        point: NDArray[np.float64],
        crop: Box,
        image_size: tuple[int, int],
    ) -> _Candidate | None:
        """Bring one mask to full size and filter it by stability and by the crop's edge."""
        threshold, offset = self.predictor.mask_threshold, self.stability_score_offset
        window, (top, left) = resize_mask_window(
            logits,
            self.predictor.input_size,
            self.predictor.original_size,
            self.predictor.image_size,
            floor=threshold - offset,
        )
        stability = stability_score(window, threshold, offset)  # kept in float32, where 19/20 >= 0.95 holds
        if self.stability_score_thresh > 0 and not stability >= self.stability_score_thresh:
            return None
        mask = window > threshold
        box = mask_to_box(mask)
        if mask.any():
            box += np.array([left, top, left, top])
        height, width = image_size
        if is_box_near_crop_edge(box, crop, (0, 0, width, height)).any():
            return None
        x0, y0 = crop[:2]
        rle = mask_to_rle(mask, (top + y0, left + x0), image_size)
        return _Candidate(
            rle, box + np.array([x0, y0, x0, y0]), score, float(stability), point + np.array([x0, y0]), crop
        )

    def _record(self, candidate: _Candidate) -> MaskRecord:
        segmentation: NDArray[np.bool_] | RLE | CocoRLE = candidate.rle
        if self.output_mode == "binary_mask":
            segmentation = rle_to_mask(candidate.rle)
        elif self.output_mode == "coco_rle":
            segmentation = rle_to_coco(candidate.rle)
        return {
            "segmentation": segmentation,
            "area": rle_area(candidate.rle),
            "bbox": box_xyxy_to_xywh(candidate.box).tolist(),
            "predicted_iou": candidate.score,
            "point_coords": [candidate.point.tolist()],
            "stability_score": candidate.stability,
            "crop_box": box_xyxy_to_xywh(candidate.crop).tolist(),
        }


def _as_predictor(model: Any) -> Predictor:
    """``model`` itself where it is a predictor, else a SamPredictor around it."""
    if hasattr(model, "predict_slots"):
        predictor: Predictor = model
        return predictor
    if not hasattr(model, "mask_decoder"):
        raise UsageError(f"everything-mode needs a promptable model or a Predictor, got {type(model).__qualname__}")
    from edgesam_deploy.model.predictor import SamPredictor  # at use: it brings torch

    return SamPredictor(model)


def _grids(
    points_per_side: int | None, grids: Sequence[ArrayLike] | None, layers: int, downscale: int
) -> list[NDArray[np.float64]]:
    """Per layer an (n, 2) grid in 0..1, from exactly one of the two ways to give it."""
    if points_per_side is not None and grids is None:
        return point_grids(points_per_side, layers, downscale)
    if grids is None or points_per_side is not None:
        raise UsageError("give exactly one of points_per_side and point_grids; the other must be None")
    if len(grids) <= layers:
        raise UsageError(f"point_grids has {len(grids)} grids, but crop_n_layers {layers} needs {layers + 1}")
    checked = [np.asarray(grid, dtype=np.float64) for grid in grids]
    for layer, grid in enumerate(checked):
        if grid.ndim != 2 or grid.shape[1] != 2 or not ((grid >= 0) & (grid <= 1)).all():
            raise UsageError(f"point_grids[{layer}] must be (n, 2) of (x, y) in 0..1, got shape {grid.shape}")
    return checked


def _check_at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise UsageError(f"{name} must be at least {least}, got {value}")


def _extent(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _suppress(candidates: list[_Candidate], scores: Sequence[float], threshold: float) -> list[_Candidate]:
    """The candidates that non-maximum suppression keeps, by descending score."""
    boxes = stack_boxes([candidate.box for candidate in candidates])
    return [candidates[index] for index in nms(boxes, scores, threshold)]


def _clean_regions(candidates: list[_Candidate], min_area: int, threshold: float) -> list[_Candidate]:
    """Fill small holes, drop small islands, and remove the duplicates that makes; untouched masks win over changed."""
    cleaned, scores = [], []
    for candidate in candidates:
        mask, holes = remove_small_regions(rle_to_mask(candidate.rle), min_area, "holes")
        mask, islands = remove_small_regions(mask, min_area, "islands")
        changed = holes or islands
        scores.append(0.0 if changed else 1.0)
        cleaned.append(candidate._replace(rle=mask_to_rle(mask), box=mask_to_box(mask)) if changed else candidate)
    return _suppress(cleaned, scores, threshold)
