"""How good masks are: IoU and boundary IoU by box and point prompts with refinement, on anything with a predictor.

The same code measures a PyTorch model and an artifact, so that what a conversion costs is a difference of two figures.
``exact`` compares at the picture's own size with the masks as they are. ``reference`` is EdgeSAM's eval_mIoU: its masks
go to the model frame (nearest) and back (bilinear, above 0), which grows them by up to a pixel, and masks without any
pixel on either side are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt, distance_transform_edt

from edgesam_deploy.distill.data import Annotated, Source
from edgesam_deploy.distill.data.items import choose
from edgesam_deploy.distill.prompts import FEWEST
from edgesam_deploy.errors import DataError, ImageError, UsageError
from edgesam_deploy.model.base_predictor import PromptPredictor
from edgesam_deploy.model.masks import RLE, mask_to_rle, rle_to_coco
from edgesam_deploy.model.prompts import BACKGROUND, FOREGROUND, IGNORED
from edgesam_deploy.model.transforms import resized_size, stability_score

Masks = NDArray[np.bool_]
FloatArray = NDArray[np.float32]
Select = Literal["score", "stability", "area", "oracle"]
PointFrom = Literal["data", "mask-random", "mask-center", "box-center"]
BOUNDARY_SHARE = 0.02  # of the picture's diagonal: how wide a boundary is (arXiv 2103.16562)


@dataclass(frozen=True)
class Protocol:
    """What is asked and how answers are judged. refine: decodings per prompt, each but the first with one more point.

    point_from: ``data``, the data set's own point; a random pixel of the mask; the one deepest inside it; the box's
    middle. select: of several masks the one of the highest predicted IoU or stability, the largest, or, knowing the
    answer, the best. max_prompts: objects per picture, chosen by ``seed``.
    """

    prompts: Literal["box", "point"] = "box"
    point_from: PointFrom = "mask-center"
    refine: int = 1
    multimask: Literal[1, 3, 4] = 1
    select: Select = "score"
    max_prompts: int = 64
    samples: int | None = None
    seed: int = 0
    protocol: Literal["exact", "reference"] = "exact"


@dataclass(frozen=True)
class Case:
    """One mask of one picture as it was answered last; ``box`` and first ``point`` in pixels of the picture."""

    name: str
    number: int
    iou: float
    boundary_iou: float
    predicted_iou: float
    area: int
    box: tuple[float, ...]
    point: tuple[float, ...] | None
    answer: RLE


@dataclass
class Result:
    """Means in 0..1 per refinement step, over all masks and over the pictures' means; ``cases`` of the last step."""

    protocol: Protocol
    pictures: int = 0
    miou: list[float] = field(default_factory=list)
    boundary_miou: list[float] = field(default_factory=list)
    miou_by_picture: list[float] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def masks(self) -> int:
        return len(self.cases)

    def worst(self, count: int) -> list[Case]:
        """The cases with the lowest IoU."""
        return sorted(self.cases, key=lambda case: (case.iou, case.name, case.number))[:count]

    def as_json(self) -> dict[str, Any]:
        """Plain data, without the answers themselves."""
        found = {**asdict(self), "masks": self.masks}
        found["cases"] = [{k: v for k, v in case.items() if k != "answer"} for case in found["cases"]]
        return found


def evaluate(
    predictor: PromptPredictor,
    source: Source,
    protocol: Protocol,
    progress: Callable[[str], None] = lambda name: None,
) -> Result:
    """Ask ``predictor`` for the masks of a data set. Broken samples are named in the result and left out.

    Raises DataError where no sample can be used, PromptError where an artifact has too few slots for the prompts.
    """
    result = Result(protocol)
    table: list[list[list[tuple[float, float]]]] = []  # by picture, by step, by mask
    count = len(source) if protocol.samples is None else min(protocol.samples, len(source))
    for index in range(count):
        progress(source.names[index])
        try:
            read = source.read(index, masks=True)
            objects = _objects(read, protocol, index)
        except (DataError, ImageError) as e:
            result.broken[source.names[index]] = str(e)
            continue
        steps = list(_answers(predictor, read, objects, protocol, index))
        table.append([step.figures for step in steps])
        result.cases += steps[-1].cases
        result.pictures += 1
    if not table:
        first = next(iter(result.broken.values()), "it is empty")
        raise DataError(f"nothing could be evaluated: {first}")
    _summarise(result, table)
    return result


def _summarise(result: Result, table: list[list[list[tuple[float, float]]]]) -> None:
    for step in range(result.protocol.refine):
        ious = [[figures[0] for figures in picture[step]] for picture in table]
        every = [iou for picture in ious for iou in picture]
        result.miou.append(_mean(every))
        result.boundary_miou.append(_mean([b for picture in table for _, b in picture[step]]))
        result.miou_by_picture.append(_mean([_mean(picture) for picture in ious]))


def _mean(values: list[float]) -> float:
    """The mean without NaN, which stands for a mask that the reference leaves out."""
    kept = [value for value in values if not np.isnan(value)]
    return float(np.mean(kept)) if kept else float("nan")


def _objects(read: Annotated, protocol: Protocol, index: int) -> NDArray[np.int64]:
    """Which objects of a picture are asked for."""
    if read.masks is None or not len(read.boxes):
        raise DataError(f"{read.name}: no objects with masks to compare with")
    if protocol.prompts == "point" and protocol.point_from == "data" and read.points is None:
        raise DataError(f"{read.name}: the data set has no points; take them from masks or boxes")
    usable = np.flatnonzero(read.masks.any((1, 2)))
    if not len(usable):
        raise DataError(f"{read.name}: every mask is empty")
    rng = np.random.default_rng([protocol.seed, index])
    return usable[choose(len(usable), protocol.max_prompts, rng, with_replacement=False)]


@dataclass(frozen=True)
class _Step:
    figures: list[tuple[float, float]]
    cases: list[Case]


def _answers(
    predictor: PromptPredictor, read: Annotated, objects: NDArray[np.int64], protocol: Protocol, index: int
) -> Iterator[_Step]:
    """The masks after each refinement step, judged."""
    assert read.masks is not None
    rng = np.random.default_rng([protocol.seed, index, 1])
    truth = read.masks[objects]
    if protocol.protocol == "reference":
        truth = grown(truth, predictor.image_size)
    boxes = read.boxes[objects] if protocol.prompts == "box" else None
    points, labels = _first_points(read, objects, protocol, rng)
    predictor.set_image(read.image)
    for step in range(protocol.refine):
        logits, scores, low_res = predictor.predict_batch(
            points, labels, boxes, num_multimask_outputs=protocol.multimask, return_logits=True
        )
        masks = np.asarray(logits > predictor.mask_threshold)
        ious: NDArray[Any] | None = None
        if protocol.select == "oracle":
            ious = np.stack([[iou(m, t) for m in row] for row, t in zip(masks, truth, strict=True)])
        chosen = _chosen(protocol.select, masks, scores, low_res, ious)
        rows = np.arange(len(objects))
        found = masks[rows, chosen]
        yield _judged(read, objects, truth, found, scores[rows, chosen], points, protocol)
        if step + 1 < protocol.refine:
            more, codes = _error_points(found, truth, rng)
            points = more if points is None else np.concatenate([points, more], 1)
            labels = codes if labels is None else np.concatenate([labels, codes], 1)


def _chosen(
    select: Select, masks: Masks, scores: FloatArray, low_res: FloatArray, ious: NDArray[Any] | None
) -> NDArray[np.int64]:
    """Which mask of each prompt counts."""
    merits: NDArray[Any] = scores
    if select == "oracle":
        assert ious is not None
        merits = ious
    elif select == "area":
        merits = masks.sum((2, 3))
    elif select == "stability":
        merits = stability_score(low_res)
    best: NDArray[np.int64] = merits.argmax(1)
    return best


def _judged(
    read: Annotated,
    objects: NDArray[np.int64],
    truth: Masks,
    found: Masks,
    scores: FloatArray,
    points: FloatArray | None,
    protocol: Protocol,
) -> _Step:
    figures, cases = [], []
    for row, number in enumerate(objects.tolist()):
        mask, right = found[row], truth[row]
        empty = protocol.protocol == "reference" and not (mask.any() or right.any())
        overlap = float("nan") if empty else iou(mask, right)
        edges = float("nan") if empty else boundary_iou(mask, right)
        figures.append((overlap, edges))
        point = None if points is None else tuple(float(v) for v in points[row, 0])
        box = tuple(float(v) for v in read.boxes[number])
        score, area = float(scores[row]), int(right.sum())
        cases.append(Case(read.name, number, overlap, edges, score, area, box, point, mask_to_rle(mask)))
    return _Step(figures, cases)


# --- prompts ---------------------------------------------------------------------------------------------------------


def _first_points(
    read: Annotated, objects: NDArray[np.int64], protocol: Protocol, rng: np.random.Generator
) -> tuple[FloatArray | None, FloatArray | None]:
    """(N, 1, 2) and (N, 1), or nothing for box prompts."""
    if protocol.prompts == "box":
        return None, None
    assert read.masks is not None
    rows: list[Any] = []
    for number in objects.tolist():
        if protocol.point_from == "data":
            assert read.points is not None
            rows.append(read.points[number, 0])
        elif protocol.point_from == "box-center":  # the reference's formula is wrong: (x0 + y0) / 2
            x0, y0, x1, y1 = read.boxes[number].tolist()
            rows.append([(x0 + x1) / 2, (y0 + y1) / 2])
        elif protocol.point_from == "mask-center":
            rows.append(deepest(read.masks[number]))
        else:
            ys, xs = np.nonzero(read.masks[number])
            pick = int(rng.integers(len(xs)))
            rows.append([xs[pick], ys[pick]])
    points = np.asarray(rows, dtype=np.float32)[:, None]
    return points, np.full(points.shape[:2], FOREGROUND, np.float32)


def deepest(mask: Masks) -> tuple[int, int]:
    """(x, y) of the pixel farthest from the outside, the picture's edge counting as outside; the first of several."""
    depth = np.asarray(distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return int(x), int(y)


def _error_points(found: Masks, truth: Masks, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """One pixel per prompt where the mask is wrong, (N, 1, 2) and (N, 1); ignored where there are fewer than 10."""
    points, labels = np.zeros((len(found), 1, 2), np.float32), np.full((len(found), 1), IGNORED, np.float32)
    for row, (mask, right) in enumerate(zip(found, truth, strict=True)):
        ys, xs = np.nonzero(mask ^ right)
        if len(xs) >= FEWEST:
            pick = int(rng.integers(len(xs)))
            points[row, 0] = xs[pick], ys[pick]
            labels[row, 0] = FOREGROUND if right[ys[pick], xs[pick]] else BACKGROUND
    return points, labels


# --- figures ---------------------------------------------------------------------------------------------------------


def iou(mask: Masks, right: Masks) -> float:
    """Intersection over union of two (H, W) masks; 1 where both are empty."""
    union = np.count_nonzero(mask | right)
    return np.count_nonzero(mask & right) / union if union else 1.0


def boundary_iou(mask: Masks, right: Masks) -> float:
    """IoU of what lies within 2 % of the picture's diagonal of each mask's own outline (arXiv 2103.16562)."""
    width = max(1, round(BOUNDARY_SHARE * float(np.hypot(*mask.shape))))
    return iou(boundary(mask, width), boundary(right, width))


def boundary(mask: Masks, width: int) -> Masks:
    """The pixels of a mask at most ``width`` steps, diagonals included, from the outside or the picture's edge: what
    ``width`` erosions by a 3 x 3 square take away.
    """
    depth = np.asarray(distance_transform_cdt(np.pad(mask, 1), metric="chessboard"))[1:-1, 1:-1]
    edge: Masks = mask & (depth <= width)
    return edge


def grown(masks: Masks, image_size: int) -> Masks:
    """Masks (N, H, W) as the reference's evaluation sees them: nearest to the model frame, bilinear back, above 0."""
    original = masks.shape[1:]
    planes = torch.from_numpy(np.ascontiguousarray(masks))[None].float()
    framed = F.interpolate(planes, resized_size(original[0], original[1], image_size), mode="nearest")
    back: Masks = (F.interpolate(framed, original, mode="bilinear", align_corners=False)[0] > 0).numpy()
    return back


# --- average precision -----------------------------------------------------------------------------------------------


def average_precision(
    predictor: PromptPredictor,
    source: Any,
    detections: list[dict[str, Any]],
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, float]:
    """COCO's mask AP (pycocotools) of a detector's boxes as prompts: the mask of each box, with the box's score.

    source: a ``CocoSource``. detections: COCO results, {"image_id", "category_id", "bbox" xywh, "score"}. Raises
    UsageError where they are not.
    """
    import contextlib
    import io

    from pycocotools.cocoeval import COCOeval

    keys = {"image_id", "category_id", "bbox", "score"}
    if not detections or any(not isinstance(d, dict) or not keys <= d.keys() for d in detections):
        raise UsageError(f"detections: a list of objects with {', '.join(sorted(keys))} is expected (COCO's results)")
    by_picture: dict[int, list[dict[str, Any]]] = {}
    for found in detections:
        by_picture.setdefault(found["image_id"], []).append(found)
    results = []
    for image_id in source.all_ids:  # also those without an object: what is found there is wrong
        progress(str(image_id))
        own = by_picture.get(image_id, [])
        if not own:
            continue
        predictor.set_image(source.picture(image_id))
        boxes = np.array([d["bbox"] for d in own], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        masks, _, _ = predictor.predict_batch(boxes=boxes, num_multimask_outputs=1)
        for entry, mask in zip(own, masks[:, 0], strict=True):
            kept = {key: value for key, value in entry.items() if key != "bbox"}  # with it, areas would be the boxes'
            results.append({**kept, "segmentation": rle_to_coco(mask_to_rle(mask))})
    if not results:
        raise UsageError("detections: none of their image_ids is a picture of this data set")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its table to stdout, which is for results
        judged = COCOeval(source.api, source.api.loadRes(results), "segm")
        judged.params.imgIds = list(source.all_ids)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    names = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
    return {name: float(value) for name, value in zip(names, judged.stats, strict=False)}
