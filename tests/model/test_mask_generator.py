"""Everything-mode over fake predictors: against a plain implementation of the reference's steps, and at its edges."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgesam_deploy.errors import ImageError, UnknownName, UsageError
from edgesam_deploy.model.mask_generator import MaskRecord, SamAutomaticMaskGenerator
from edgesam_deploy.model.masks import crop_boxes, point_grid, remove_small_regions, rle_to_mask
from edgesam_deploy.model.transforms import resized_size, scale_coords

SIDE, LOW = 128, 32
Answer = tuple[NDArray[np.float32], NDArray[np.float32]]


class FakePredictor:
    """Counts its calls and checks that prompts come as the reference sends them."""

    image_size = SIDE
    mask_threshold = 0.0

    def __init__(self) -> None:
        self.images: list[NDArray[np.uint8]] = []
        self.batches: list[int] = []

    @property
    def original_size(self) -> tuple[int, int]:
        return self.images[-1].shape[0], self.images[-1].shape[1]

    @property
    def input_size(self) -> tuple[int, int]:
        return resized_size(*self.original_size, SIDE)

    def set_image(self, image: NDArray[np.uint8]) -> None:
        self.images.append(image)

    def predict_slots(self, point_coords: NDArray[np.float32], point_labels: NDArray[np.float32]) -> Answer:
        assert point_coords.dtype == point_labels.dtype == np.float32
        assert point_coords.shape == (len(point_labels), 2, 2)
        assert not point_coords[:, 1].any()
        assert (point_labels == [1, -1]).all()
        self.batches.append(len(point_coords))
        masks, scores = zip(*[self.answer(*point) for point in point_coords[:, 0].tolist()], strict=True)
        return np.stack(masks).astype(np.float32), np.stack(scores).astype(np.float32)

    def answer(self, x: float, y: float) -> tuple[NDArray[Any], NDArray[Any]]:
        """Logits (4, LOW, LOW) and scores (4,) of one point in the model frame."""
        raise NotImplementedError


class DiscPredictor(FakePredictor):
    """The disc of the cell of a 4 x 4 grid that the point is in; slot k has radius 2 + k / 2 low-res pixels."""

    def answer(self, x: float, y: float) -> tuple[NDArray[Any], NDArray[Any]]:
        rows, columns = np.mgrid[:LOW, :LOW] + 0.5
        cell = LOW / 4
        centre = (int(x * LOW / SIDE / cell) + 0.5) * cell, (int(y * LOW / SIDE / cell) + 0.5) * cell
        distance = np.hypot(columns - centre[0], rows - centre[1])
        radii = 2 + np.arange(4)[:, None, None] / 2
        return (radii - distance) * 20, np.array([0.91, 0.92, 0.94, 0.93])


class CloudPredictor(FakePredictor):
    """Smooth random masks, the same for the same point and picture size."""

    def answer(self, x: float, y: float) -> tuple[NDArray[Any], NDArray[Any]]:
        random = np.random.default_rng([int(x * 16), int(y * 16), *self.original_size])
        coarse = torch.from_numpy(random.standard_normal((1, 4, 3, 3)))
        clouds = functional.interpolate(coarse, (LOW, LOW), mode="bicubic", align_corners=False)[0].numpy()
        return clouds * 30 - random.uniform(-6, 12, (4, 1, 1)), random.uniform(0.5, 1.0, 4)


class EmptyPredictor(FakePredictor):
    def answer(self, x: float, y: float) -> tuple[NDArray[Any], NDArray[Any]]:
        return np.full((4, LOW, LOW), -9.0), np.ones(4)


def picture(height: int = 90, width: int = 120) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def generator(predictor: Any, **options: Any) -> SamAutomaticMaskGenerator:
    return SamAutomaticMaskGenerator(predictor, **{"points_per_side": 8, "points_per_batch": 10, **options})


# --- the reference's steps, written plainly --------------------------------------------------------------------------


def plain_stability(logits: NDArray[Any]) -> float:
    outer = int((logits > -1).sum())
    return float(np.float32(int((logits > 1).sum()) / outer)) if outer else 0.0


def plain_box(mask: NDArray[np.bool_]) -> list[int]:
    y, x = np.nonzero(mask)
    return [int(x.min()), int(y.min()), int(x.max()), int(y.max())] if x.size else [0, 0, 0, 0]


def plain_nms(found: list[dict[str, Any]], scores: list[float], threshold: float) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for index in sorted(range(len(found)), key=lambda i: -scores[i]):
        a = found[index]["box"]
        for b in (other["box"] for other in kept):
            w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            shared = max(w, 0) * max(h, 0)
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
            if union and shared / union > threshold:
                break
        else:
            kept.append(found[index])
    return kept


def plain_crop(predictor: FakePredictor, image: NDArray[np.uint8], crop: Any, options: dict[str, Any]) -> Any:
    x0, y0, x1, y1 = crop
    predictor.set_image(image[y0:y1, x0:x1])
    size, inner = predictor.original_size, predictor.input_size
    found = []
    for point in point_grid(options["points_per_side"]) * [x1 - x0, y1 - y0]:
        x, y = scale_coords(point, size, SIDE).tolist()
        low, iou = predictor.answer(x, y)
        low = low.astype(np.float32)
        full = functional.interpolate(torch.from_numpy(low[None]), (SIDE, SIDE), mode="bilinear", align_corners=False)
        full = functional.interpolate(full[..., : inner[0], : inner[1]], size, mode="bilinear", align_corners=False)
        for slot in {3: (1, 2, 3), 1: (0,), 4: (0, 1, 2, 3)}[options["num_multimask_outputs"]]:
            logits = full[0, slot].numpy()
            score = plain_stability(low[slot]) if options["use_stability_score"] else float(np.float32(iou[slot]))
            stability, box = plain_stability(logits), np.array(plain_box(logits > 0))
            if score <= options["pred_iou_thresh"] or stability < options["stability_score_thresh"]:
                continue
            placed = box + np.array([x0, y0, x0, y0])
            whole = [0, 0, image.shape[1], image.shape[0]]
            if ((abs(placed - np.array(crop)) <= 20) & ~(abs(placed - np.array(whole)) <= 20)).any():
                continue
            mask = np.zeros(image.shape[:2], np.bool_)
            mask[y0:y1, x0:x1] = logits > 0
            found.append(
                {"mask": mask, "box": placed.tolist(), "score": score, "stability": stability,
                 "point": (point + np.array([x0, y0])).tolist(), "crop": crop}
            )  # fmt: skip
    return plain_nms(found, [f["score"] for f in found], options["box_nms_thresh"])


def plain_generate(predictor: FakePredictor, image: NDArray[np.uint8], options: dict[str, Any]) -> list[dict[str, Any]]:
    crops = crop_boxes((image.shape[0], image.shape[1]), options["crop_n_layers"], 512 / 1500)
    found = [f for crop, _ in crops for f in plain_crop(predictor, image, crop, options)]
    if len(crops) > 1:
        areas = [(f["crop"][2] - f["crop"][0]) * (f["crop"][3] - f["crop"][1]) for f in found]
        found = plain_nms(found, [1 / area for area in areas], options["crop_nms_thresh"])
    if options["min_mask_region_area"]:
        untouched = []
        for f in found:
            f["mask"], holes = remove_small_regions(f["mask"], options["min_mask_region_area"], "holes")
            f["mask"], islands = remove_small_regions(f["mask"], options["min_mask_region_area"], "islands")
            f["box"] = plain_box(f["mask"])
            untouched.append(float(not (holes or islands)))
        found = plain_nms(found, untouched, max(options["box_nms_thresh"], options["crop_nms_thresh"]))
    return found


PLAIN = {
    "points_per_side": 5, "pred_iou_thresh": 0.6, "stability_score_thresh": 0.7, "box_nms_thresh": 0.7,
    "crop_n_layers": 0, "crop_nms_thresh": 0.7, "min_mask_region_area": 0, "use_stability_score": True,
    "num_multimask_outputs": 3,
}  # fmt: skip


@pytest.mark.parametrize("size", [(90, 120), (200, 33), (64, 64)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_stability_score": False, "pred_iou_thresh": 0.7},
        {"num_multimask_outputs": 1},
        {"num_multimask_outputs": 4, "box_nms_thresh": 0.4},
        {"crop_n_layers": 1},
        {"min_mask_region_area": 40},
        {"min_mask_region_area": 60, "points_per_side": 12, "box_nms_thresh": 0.3, "crop_nms_thresh": 0.9},
        {"crop_n_layers": 2, "min_mask_region_area": 25, "crop_nms_thresh": 0.5},
    ],
)
def test_records_are_the_reference_steps(size: tuple[int, int], changes: dict[str, Any]) -> None:
    compare_with_the_plain_steps(size, changes)


def test_records_of_a_picture_larger_than_its_masks() -> None:
    compare_with_the_plain_steps((500, 640), {"points_per_side": 4, "stability_score_thresh": 0.1})


def compare_with_the_plain_steps(size: tuple[int, int], changes: dict[str, Any]) -> None:
    options = {**PLAIN, **changes}
    if options["min_mask_region_area"]:
        pytest.importorskip("scipy")
    image = picture(*size)
    records = SamAutomaticMaskGenerator(CloudPredictor(), points_per_batch=7, **options).generate(image)
    expected = plain_generate(CloudPredictor(), image, options)
    assert len(records) == len(expected) > 0
    for record, plain in zip(records, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(record["segmentation"]), plain["mask"])
        x0, y0, x1, y1 = plain["box"]
        assert record["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert record["area"] == plain["mask"].sum()
        assert record["predicted_iou"] == pytest.approx(plain["score"], abs=1e-7)
        assert record["stability_score"] == pytest.approx(plain["stability"], abs=1e-7)
        assert record["point_coords"] == [pytest.approx(plain["point"])]
        x0, y0, x1, y1 = plain["crop"]
        assert record["crop_box"] == [x0, y0, x1 - x0, y1 - y0]


# --- what a user sees ------------------------------------------------------------------------------------------------

RECORD_KEYS = [
    "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box",
]  # fmt: skip


def disc_records(**options: Any) -> list[MaskRecord]:
    options = {"pred_iou_thresh": 0.8, "stability_score_thresh": 0.8, **options}
    return generator(DiscPredictor(), **options).generate(picture(128, 128))


def test_one_record_per_disc_in_the_order_of_the_score() -> None:
    records = disc_records(box_nms_thresh=0.3)
    assert len(records) == 16
    for record in records:
        assert list(record) == RECORD_KEYS
        assert type(record["area"]) is int
        assert type(record["predicted_iou"]) is float
        assert type(record["stability_score"]) is float
        assert all(type(side) is int for side in record["bbox"])
        mask = np.asarray(record["segmentation"])
        assert mask.shape == (128, 128)
        assert mask.dtype == np.bool_
        assert record["area"] == mask.sum()
        x, y = record["point_coords"][0]
        assert mask[int(y), int(x)]
    assert all(a["predicted_iou"] >= b["predicted_iou"] for a, b in pairwise(records))


def test_predicted_iou_is_the_stability_score_unless_asked_otherwise() -> None:
    ranked = disc_records(box_nms_thresh=1.0)
    assert {round(r["predicted_iou"], 3) for r in ranked}.isdisjoint({0.91, 0.92, 0.93, 0.94})
    own = disc_records(box_nms_thresh=1.0, use_stability_score=False)
    assert {round(r["predicted_iou"], 2) for r in own} == {0.92, 0.93, 0.94}
    assert {round(r["predicted_iou"], 2) for r in disc_records(use_stability_score=False, num_multimask_outputs=1)} == {
        0.91
    }


def test_score_filter_is_strict() -> None:
    threshold = float(np.float32(0.93))
    records = disc_records(box_nms_thresh=1.0, use_stability_score=False)
    assert any(r["predicted_iou"] == threshold for r in records)
    strict = disc_records(box_nms_thresh=1.0, use_stability_score=False, pred_iou_thresh=threshold)
    assert {round(r["predicted_iou"], 2) for r in strict} == {0.94}


def test_stability_filter_is_not() -> None:
    class Full(FakePredictor):
        def answer(self, x: float, y: float) -> tuple[NDArray[Any], NDArray[Any]]:
            return np.full((4, LOW, LOW), 9.0), np.ones(4)

    records = generator(Full(), pred_iou_thresh=0.99, stability_score_thresh=1.0).generate(picture())
    assert [(r["area"], r["bbox"], r["stability_score"]) for r in records] == [(90 * 120, [0, 0, 119, 89], 1.0)]
    assert generator(Full(), pred_iou_thresh=1.0).generate(picture()) == []


def test_output_modes_hold_the_same_masks() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    binary, plain, packed = (disc_records(output_mode=mode) for mode in ("binary_mask", "uncompressed_rle", "coco_rle"))
    assert json.dumps(plain)
    assert json.dumps(packed)
    for a, b, c in zip(binary, plain, packed, strict=True):
        rle: Any = b["segmentation"]
        np.testing.assert_array_equal(np.asarray(a["segmentation"]), rle_to_mask(rle))
        assert coco.area(c["segmentation"]) == a["area"]


def test_batches_crops_and_progress() -> None:
    predictor, seen = DiscPredictor(), list[tuple[int, int]]()
    options = {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}
    generator(predictor, **options).generate(picture(), lambda done, total: seen.append((done, total)))
    assert [image.shape[:2] for image in predictor.images] == [(90, 120)] + [(60, 75)] * 4
    assert predictor.batches == [10] * 6 + [4] + [10, 6] * 4
    assert seen[0] == (10, 128)
    assert seen[-1] == (128, 128)
    assert len(seen) == 15
    assert all(image.flags.c_contiguous for image in predictor.images)


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("area", [0, 10])
def test_nothing_survives(layers: int, area: int) -> None:
    assert generator(EmptyPredictor(), crop_n_layers=layers, min_mask_region_area=area).generate(picture()) == []


def test_disabled_filters_keep_empty_masks() -> None:
    options = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_side": 1}
    records = generator(EmptyPredictor(), **options).generate(picture())
    assert [(r["area"], r["bbox"], r["predicted_iou"], r["stability_score"]) for r in records] == [
        (0, [0, 0, 0, 0], 0.0, 0.0)
    ] * 3  # boxes without area suppress nothing


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 2)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    records = generator(CloudPredictor(), pred_iou_thresh=0, crop_n_layers=2).generate(picture(*size))
    assert all(np.asarray(record["segmentation"]).shape == size for record in records)


def test_own_grids() -> None:
    grids = [np.array([[0.5, 0.5], [0.1, 0.9]])]
    records = generator(DiscPredictor(), points_per_side=None, point_grids=grids, stability_score_thresh=0.5)
    points = {tuple(record["point_coords"][0]) for record in records.generate(picture(100, 200))}
    assert points <= {(100.0, 50.0), (20.0, 90.0)}
    assert points


def test_models_with_one_mask() -> None:
    class OneMask(DiscPredictor):
        def answer(self, x: float, y: float) -> tuple[NDArray[Any], NDArray[Any]]:
            masks, scores = super().answer(x, y)
            return masks[:1], scores[:1]

    assert generator(OneMask(), pred_iou_thresh=0.5, stability_score_thresh=0.5).generate(picture(128, 128))


def test_mask_threshold_of_the_predictor() -> None:
    class Raised(DiscPredictor):
        mask_threshold = 4.0

        def answer(self, x: float, y: float) -> tuple[NDArray[Any], NDArray[Any]]:
            masks, scores = super().answer(x, y)
            return masks / 5, scores

    options = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 1.0}
    raised = generator(Raised(), **options).generate(picture(128, 128))
    low = Raised().answer(8, 8)[0][1:]
    expected = (low > 5).sum((1, 2)) / (low > 3).sum((1, 2))
    assert {round(r["predicted_iou"], 5) for r in raised} == {round(float(score), 5) for score in expected}
    flat = generator(DiscPredictor(), **options).generate(picture(128, 128))
    assert max(r["area"] for r in raised) < max(r["area"] for r in flat)


def test_cleaned_duplicates_are_judged_by_the_larger_threshold() -> None:
    pytest.importorskip("scipy")

    class Squares(FakePredictor):
        def answer(self, x: float, y: float) -> tuple[NDArray[Any], NDArray[Any]]:
            masks = np.full((4, LOW, LOW), -20.0)
            masks[1, :16, :16] = masks[1, -2:, -2:] = 20.0  # its island makes its box the picture's
            masks[2, :12, :16] = 20.0
            return masks, np.ones(4)

    def areas(**options: Any) -> list[int]:
        found = generator(Squares(), pred_iou_thresh=0.5, box_nms_thresh=0.3, min_mask_region_area=100, **options)
        return [record["area"] for record in found.generate(picture(128, 128))]

    # The untouched mask comes first; interpolation rounds one corner pixel off each.
    assert areas(crop_nms_thresh=0.9) == [48 * 64 - 1, 64 * 64 - 1]
    assert areas(crop_nms_thresh=0.3) == [48 * 64 - 1]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"points_per_batch": 0}, "points_per_batch"),
        ({"points_per_side": 0}, "points_per_side"),
        ({"points_per_side": None}, "exactly one"),
        ({"point_grids": [np.zeros((1, 2))]}, "exactly one"),
        ({"points_per_side": None, "point_grids": [np.zeros((1, 2))], "crop_n_layers": 1}, "needs 2"),
        ({"points_per_side": None, "point_grids": [np.zeros((1, 3))]}, r"\(n, 2\)"),
        ({"points_per_side": None, "point_grids": [np.full((1, 2), 7.0)]}, r"0\.\.1"),
        ({"crop_n_layers": -1}, "crop_n_layers"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor"),
        ({"stability_score_offset": -1}, "stability_score_offset"),
        ({"num_multimask_outputs": 2}, "1, 3 or 4"),
    ],
)
def test_refuses_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        generator(DiscPredictor(), **options)


def test_refuses_an_unknown_output_mode_and_offers_the_closest() -> None:
    with pytest.raises(UnknownName, match="did you mean coco_rle"):
        generator(DiscPredictor(), output_mode="coco-rle")


def test_refuses_what_is_no_image_or_predictor() -> None:
    with pytest.raises(ImageError):
        generator(DiscPredictor()).generate(np.zeros((4, 4), np.uint8))
    with pytest.raises(UsageError, match="got str"):
        generator("edge_sam")


def test_names_a_predictor_that_answers_wrongly() -> None:
    class ThreeMasks(DiscPredictor):
        def answer(self, x: float, y: float) -> tuple[NDArray[Any], NDArray[Any]]:
            masks, scores = super().answer(x, y)
            return masks[:3], scores[:3]

    with pytest.raises(UsageError, match=r"ThreeMasks\.predict_slots gave masks \(10, 3, 32, 32\)"):
        generator(ThreeMasks()).generate(picture())


def test_wraps_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = DiscPredictor()
    module = ModuleType("edgesam_deploy.model.predictor")
    monkeypatch.setattr(module, "SamPredictor", lambda model: wrapped, raising=False)
    monkeypatch.setitem(sys.modules, "edgesam_deploy.model.predictor", module)
    assert generator(SimpleNamespace(mask_decoder=None)).predictor is wrapped
