"""Semantic metrics against hand-made cases and an oracle that counts pixels with sets."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_deploy.errors import UsageError
from edgesam_deploy.model import semantic_metrics
from edgesam_deploy.model.semantic_metrics import SemanticMetrics

NAN = math.nan


def scored(labels: Any, predictions: Any, classes: int, **options: Any) -> SemanticMetrics:
    metrics = SemanticMetrics(classes, **options)
    metrics.add(labels, predictions)
    return metrics


def test_by_hand() -> None:
    # label 0: 3 right, 1 taken for 1; label 1: 2 right, 2 taken for 0; class 2 occurs nowhere
    metrics = scored([0, 0, 0, 0, 1, 1, 1, 1, 9, -1], [0, 0, 0, 1, 1, 1, 0, 0, 2, 2], 3)
    assert metrics.confusion.tolist() == [[3, 1, 0], [2, 2, 0], [0, 0, 0]]
    assert metrics.pixel_accuracy == 5 / 8
    np.testing.assert_array_equal(metrics.iou, [3 / 6, 2 / 5, NAN])
    np.testing.assert_array_equal(metrics.precision, [3 / 5, 2 / 3, NAN])
    np.testing.assert_array_equal(metrics.recall, [3 / 4, 2 / 4, NAN])
    np.testing.assert_allclose(metrics.f1, [6 / 9, 4 / 7, NAN], rtol=1e-15)
    assert metrics.mean_iou == pytest.approx(0.45, abs=1e-15)
    assert metrics.frequency_weighted_iou == pytest.approx(0.45, abs=1e-15)


def test_absent_classes_by_either_convention() -> None:
    told = {absent: scored([0, 0, 1], [0, 1, 1], 3, absent=absent).to_json() for absent in ("nan", "zero")}
    assert told["nan"]["mean_precision"] == 0.75
    assert told["zero"]["mean_precision"] == 0.5
    assert told["zero"]["mean_recall"] == 0.5
    assert told["nan"]["mean_iou"] == told["zero"]["mean_iou"] == 0.5  # absent from the IoU in both
    assert told["nan"]["per_class"][2]["f1"] is None
    assert told["zero"]["per_class"][2]["f1"] == 0


@pytest.mark.parametrize(("absent", "f1"), [("nan", 2 / 3), ("zero", 1 / 3)])
def test_a_class_that_was_never_predicted(absent: Any, f1: float) -> None:
    metrics = scored([0, 1], [0, 0], 2, absent=absent)
    assert metrics.mean_iou == 0.25
    assert metrics.to_json()["mean_f1"] == pytest.approx(f1)


def test_ignore_last_leaves_out_row_and_column() -> None:
    labels, predictions = [0, 0, 1, 1, 2, 2], [0, 2, 1, 0, 2, 1]
    metrics = scored(labels, predictions, 3, ignore_last=True)
    assert metrics.scored.tolist() == [[1, 0], [1, 1]]
    assert metrics.pixel_accuracy == 2 / 3
    np.testing.assert_array_equal(metrics.iou, [1 / 2, 1 / 2])
    assert metrics.to_json()["pixels"] == 3


def test_nothing_added_is_nan_and_null() -> None:
    metrics = SemanticMetrics(2)
    assert math.isnan(metrics.pixel_accuracy)
    assert math.isnan(metrics.mean_iou)
    assert math.isnan(metrics.frequency_weighted_iou)
    metrics.add(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8))
    told = json.loads(json.dumps(metrics.to_json(), allow_nan=False))
    assert told["mean_iou"] is told["mean_f1"] is told["per_class"][1]["iou"] is None


def oracle(labels: list[int], predictions: list[int], classes: int) -> dict[str, Any]:
    """With sets of pixels, class by class."""
    pairs = [(index, a, b) for index, (a, b) in enumerate(zip(labels, predictions, strict=True)) if 0 <= a < classes]
    told: dict[str, Any] = {"iou": [], "precision": [], "recall": [], "f1": []}
    weighted = 0.0
    for which in range(classes):
        truth, found = {i for i, a, _ in pairs if a == which}, {i for i, _, b in pairs if b == which}
        iou = len(truth & found) / len(truth | found) if truth | found else NAN
        p = len(truth & found) / len(found) if found else NAN
        r = len(truth & found) / len(truth) if truth else NAN
        f1 = 2 * p * r / (p + r) if p + r > 0 else NAN
        for name, value in (("iou", iou), ("precision", p), ("recall", r), ("f1", f1)):
            told[name].append(value)
        weighted += len(truth) / max(len(pairs), 1) * iou if truth else 0
    told["accuracy"] = sum(a == b for _, a, b in pairs) / len(pairs) if pairs else NAN
    told["weighted"] = weighted if pairs else NAN
    return told


PIXEL = st.tuples(st.integers(-2, 6), st.integers(0, 3))


@settings(deadline=None)
@given(pictures=st.lists(st.lists(PIXEL, max_size=12), min_size=1, max_size=4))
def test_any_pictures_against_the_oracle(pictures: list[list[tuple[int, int]]]) -> None:
    metrics = SemanticMetrics(4)
    for pixels in pictures:
        flat = np.array(pixels, np.int64).reshape(-1, 2)
        metrics.add(flat[:, 0], flat[:, 1])
    labels, predictions = ([pixel[side] for pixels in pictures for pixel in pixels] for side in (0, 1))
    expected = oracle(labels, predictions, 4)
    for name in ("iou", "precision", "recall", "f1"):
        np.testing.assert_allclose(getattr(metrics, name), expected[name], rtol=1e-12)
    np.testing.assert_allclose(metrics.pixel_accuracy, expected["accuracy"])
    np.testing.assert_allclose(metrics.frequency_weighted_iou, expected["weighted"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int64, np.uint64])
def test_types_of_labels(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 33, (2, 9, 11))
    wanted = scored(labels, predictions, 33).confusion
    np.testing.assert_array_equal(scored(labels.astype(dtype), predictions.astype(dtype), 33).confusion, wanted)


def test_large_pictures_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predictions = np.random.default_rng(0).integers(0, 3, (2, 10, 10))
    wanted = scored(labels, predictions, 3).confusion
    monkeypatch.setattr(semantic_metrics, "_CHUNK", 7)
    np.testing.assert_array_equal(scored(labels, predictions, 3).confusion, wanted)


@pytest.mark.parametrize(
    ("labels", "predictions", "words"),
    [
        ([0, 1], [0], "one shape"),
        ([0.0], [0], "labels must be class indices"),
        ([0], [True], "predictions must be class indices"),
        ([0, 1], [0, 3], r"predictions 0..3 must be in 0..2"),
        ([0], [-1], "-1"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_counted(labels: Any, predictions: Any, words: str) -> None:
    metrics = SemanticMetrics(3)
    with pytest.raises(UsageError, match=words):
        metrics.add(labels, predictions)
    assert not metrics.confusion.any()


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="absent"):
        SemanticMetrics(3, absent="none")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least one class"):
        SemanticMetrics(1, ignore_last=True)
