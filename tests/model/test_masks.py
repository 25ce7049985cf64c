"""Run lengths, boxes, suppression, grids, crops and regions, against brute force and pycocotools."""

from __future__ import annotations

import json
from math import isclose
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from edgesam_deploy.errors import PromptError, UsageError
from edgesam_deploy.model.masks import (
    box_xyxy_to_xywh,
    crop_boxes,
    is_box_near_crop_edge,
    mask_to_box,
    mask_to_rle,
    nms,
    point_grid,
    point_grids,
    remove_small_regions,
    rle_area,
    rle_to_coco,
    rle_to_mask,
    stack_boxes,
)

small_masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9))


# --- run lengths -----------------------------------------------------------------------------------------------------


def brute_counts(mask: NDArray[np.bool_]) -> list[int]:
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


@given(small_masks)
def test_rle_round_trip(mask: NDArray[np.bool_]) -> None:
    rle = mask_to_rle(mask)
    assert rle == {"size": list(mask.shape), "counts": brute_counts(mask)}
    assert json.loads(json.dumps(rle)) == rle
    np.testing.assert_array_equal(rle_to_mask(rle), mask)
    assert rle_area(rle) == mask.sum()


@given(small_masks, st.tuples(*[st.integers(0, 4)] * 4))
def test_rle_of_a_window(mask: NDArray[np.bool_], margins: tuple[int, int, int, int]) -> None:
    top, bottom, left, right = margins
    whole = np.pad(mask, ((top, bottom), (left, right)))
    assert mask_to_rle(mask, (top, left), whole.shape) == mask_to_rle(whole)


def test_rle_of_an_empty_window() -> None:
    assert mask_to_rle(np.zeros((0, 0), np.bool_), (0, 0), (4, 5)) == {"size": [4, 5], "counts": [20]}


@pytest.mark.parametrize("corner", [(-1, 0), (0, -1), (3, 0), (0, 3)])
def test_rle_refuses_a_window_outside(corner: tuple[int, int]) -> None:
    with pytest.raises(PromptError, match="does not fit"):
        mask_to_rle(np.ones((3, 3), np.bool_), corner, (5, 5))


@pytest.mark.parametrize("counts", [[3], [10], [10, -1], []])
def test_rle_refuses_damage(counts: list[int]) -> None:
    with pytest.raises(PromptError, match="RLE is damaged"):
        rle_to_mask({"size": [3, 3], "counts": counts})


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own
@settings(max_examples=30)
@given(small_masks)
def test_coco_rle_is_pycocotools_own(mask: NDArray[np.bool_]) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    packed = rle_to_coco(mask_to_rle(mask))
    assert isinstance(packed["counts"], str)
    assert json.dumps(packed)
    np.testing.assert_array_equal(coco.decode(packed), mask)
    assert packed["counts"] == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


# --- boxes -----------------------------------------------------------------------------------------------------------


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=4, max_side=6)))
def test_mask_to_box(masks: NDArray[np.bool_]) -> None:
    boxes = mask_to_box(masks)
    assert boxes.shape == (*masks.shape[:-2], 4)
    for index in np.ndindex(*masks.shape[:-2]):
        y, x = np.nonzero(masks[index])
        expected = [x.min(), y.min(), x.max(), y.max()] if x.size else [0, 0, 0, 0]
        assert boxes[index].tolist() == expected


def test_boxes_of_nothing() -> None:
    assert mask_to_box(np.zeros((0, 4, 4), np.bool_)).shape == (0, 4)
    assert mask_to_box(np.zeros((0, 0), np.bool_)).tolist() == [0, 0, 0, 0]
    assert stack_boxes([]).shape == (0, 4)
    assert box_xyxy_to_xywh(stack_boxes([])).shape == (0, 4)


def test_box_xyxy_to_xywh_leaves_its_argument() -> None:
    boxes = np.array([[1, 2, 5, 9]])
    assert box_xyxy_to_xywh(boxes).tolist() == [[1, 2, 4, 7]]
    assert boxes.tolist() == [[1, 2, 5, 9]]


def brute_nms(boxes: NDArray[Any], scores: NDArray[Any], threshold: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        for other in kept:
            a, b = boxes[index], boxes[other]
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            shared = max(width, 0) * max(height, 0)
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
            if union and shared / union > threshold:
                break
        else:
            kept.append(index)
    return kept


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 40),
    levels=st.sampled_from([2, 5, 1000]),
    threshold=st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]),
)
def test_nms_is_brute_force(seed: int, count: int, levels: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    corners = np.sort(random.integers(0, 12, (count, 2, 2)), axis=1)
    boxes = corners.reshape(-1, 4)
    scores = random.integers(0, levels, count) / levels
    assert nms(boxes, scores, threshold).tolist() == brute_nms(boxes, scores, threshold)


def test_nms_at_the_threshold_keeps_both() -> None:
    boxes = [[0, 0, 10, 1], [0, 0, 8, 1], [0, 0, 9, 1]]  # IoU 0.8 and 0.9 with the first
    assert nms(boxes, [0.9, 0.8, 0.7], 0.8).tolist() == [0, 1]
    assert nms(boxes, [0.7, 0.7, 0.7], 0.99).tolist() == [0, 1, 2]
    with pytest.raises(PromptError):
        nms(boxes, [1.0], 0.5)


def test_box_near_crop_edge() -> None:
    crop, image = (100, 0, 300, 200), (0, 0, 400, 200)
    boxes = [[21, 50, 179, 150], [20, 50, 100, 150], [50, 50, 180, 150], [50, 0, 100, 199], [50, 50, 100, 150]]
    assert is_box_near_crop_edge(boxes, crop, image).tolist() == [False, True, True, False, False]
    assert is_box_near_crop_edge([], crop, image).shape == (0,)


# --- points and crops ------------------------------------------------------------------------------------------------


def test_point_grid_is_cell_centres_row_by_row() -> None:
    assert point_grid(1).tolist() == [[0.5, 0.5]]
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    grid = point_grid(32)
    assert grid.shape == (1024, 2)
    assert isclose(grid[1, 0], 3 / 64)
    assert isclose(grid[-1, 1], 63 / 64)


def test_point_grids_by_layer() -> None:
    assert [len(grid) for grid in point_grids(8, 3, 2)] == [64, 16, 4, 1]
    assert [len(grid) for grid in point_grids(2, 3, 2)] == [4, 1, 1, 1]  # the reference: division by zero
    for arguments in ((0, 0, 1), (4, 1, 0)):
        with pytest.raises(UsageError):
            point_grids(*arguments)


def test_crop_boxes_by_hand() -> None:
    boxes = crop_boxes((1000, 1500), 1, 512 / 1500)
    # overlap int(512 / 1500 * 1000 * 2 / 2) = 341; columns ceil((341 + 1500) / 2) = 921, rows ceil(1341 / 2) = 671
    assert boxes == [
        ((0, 0, 1500, 1000), 0),
        ((0, 0, 921, 671), 1),
        ((0, 330, 921, 1000), 1),
        ((580, 0, 1500, 671), 1),
        ((580, 330, 1500, 1000), 1),
    ]


@given(st.tuples(st.integers(1, 400), st.integers(1, 400)), st.integers(0, 3), st.floats(0, 0.6))
def test_crops_cover_the_picture_and_are_not_empty(size: tuple[int, int], layers: int, ratio: float) -> None:
    boxes = crop_boxes(size, layers, ratio)
    for layer in range(layers + 1):
        covered = np.zeros(size, np.bool_)
        for (x0, y0, x1, y1), _ in [entry for entry in boxes if entry[1] == layer]:
            assert 0 <= x0 < x1 <= size[1]
            assert 0 <= y0 < y1 <= size[0]
            covered[y0:y1, x0:x1] = True
        assert covered.all()
    if min(size) >= 64:
        assert len(boxes) == sum(4**layer for layer in range(layers + 1))


# --- small regions ---------------------------------------------------------------------------------------------------


def drawn(*rows: str) -> NDArray[np.bool_]:
    return np.array([[mark == "#" for mark in row] for row in rows])


def test_holes_are_filled_below_the_area_only() -> None:
    mask = drawn("######", "#.##.#", "####.#", "######")
    filled, changed = remove_small_regions(mask, 2, "holes")
    assert changed
    np.testing.assert_array_equal(filled, drawn("######", "####.#", "####.#", "######"))
    again, changed = remove_small_regions(filled, 2, "holes")
    assert not changed
    assert again is filled


def test_islands_touch_by_corners() -> None:
    mask = drawn("#...#.", ".#....", "......", "###...")
    kept, changed = remove_small_regions(mask, 2, "islands")
    assert changed
    np.testing.assert_array_equal(kept, drawn("#.....", ".#....", "......", "###..."))


def test_the_largest_island_stays() -> None:
    kept, changed = remove_small_regions(drawn("##..#", ".....", "###.."), 100, "islands")
    assert changed
    np.testing.assert_array_equal(kept, drawn(".....", ".....", "###.."))


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("mode", ["holes", "islands"])
def test_uniform_masks(fill: bool, mode: Any) -> None:
    mask = np.full((3, 4), fill)
    cleaned, changed = remove_small_regions(mask, 5, mode)
    np.testing.assert_array_equal(cleaned, mask)
    assert not changed


def test_unknown_mode() -> None:
    with pytest.raises(UsageError, match="both"):
        remove_small_regions(np.zeros((2, 2), np.bool_), 1, "both")  # type: ignore[arg-type]
