"""How well class maps agree with labels: confusion matrix, accuracy, IoU, precision, recall, F1. NumPy only.

The formulas are the reference's (CWSAM, arXiv 2401.02326, ``SegmentationMetric``). It follows two conventions for a
class whose denominator is 0, so ``absent`` chooses: its test leaves NaN, which the means leave out; its validation adds
1e-10, so that precision, recall and F1 of that class are 0 and count in the means. IoU is NaN there in both.

Noted deviations from the reference:

* Every picture counts; its test scores only the last one of a batch.
* Nothing is rounded; it rounds precision, recall and F1 to 4 decimals before averaging them.
* ``zero`` gives exact quotients for the other classes, without the 1e-10.

Under ``nan``, a class that was never predicted has no precision and so no F1, though it may have been missed
everywhere: the mean F1 then leaves it out, the mean IoU counts it as 0.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgesam_deploy.errors import UsageError

_CHUNK = 1 << 20  # pixels that are counted at a time: bincount makes 8 bytes of each


class SemanticMetrics:
    """Adds up pictures; each figure is over all pixels added so far, and NaN where there are none.

    ``confusion`` (K, K) int64 counts pixels by label (row) and prediction (column). With ``ignore_last`` the figures
    leave out the last class, row and column: the reference's ``ignore_bg``, whose background comes last.
    """

    def __init__(self, classes: int, ignore_last: bool = False, absent: Literal["nan", "zero"] = "nan") -> None:
        if absent not in ("nan", "zero"):
            raise UsageError(f"absent={absent!r}: must be 'nan' or 'zero'")
        if classes < 1 + ignore_last:
            raise UsageError(f"classes={classes}: must leave at least one class to score")
        self.classes, self.ignore_last, self.absent = classes, ignore_last, absent
        self.confusion = np.zeros((classes, classes), np.int64)

    def add(self, labels: ArrayLike, predictions: ArrayLike) -> None:
        """Count pictures: integers of one shape. Pixels labelled outside 0..K-1 are left out.

        Raises UsageError for other types, shapes that differ, and predictions outside 0..K-1 of pixels that count.
        """
        labels, predictions = np.asarray(labels), np.asarray(predictions)
        if labels.shape != predictions.shape:
            raise UsageError(f"labels {labels.shape} and predictions {predictions.shape} must have one shape")
        for name, array in (("labels", labels), ("predictions", predictions)):
            if not np.issubdtype(array.dtype, np.integer):
                raise UsageError(f"{name} must be class indices, integers; got {array.dtype}")
        counts = np.zeros(self.classes**2, np.int64)
        flat_labels, flat_predictions = labels.ravel(), predictions.ravel()
        for start in range(0, labels.size, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            counts += self._counted(flat_labels[chunk], flat_predictions[chunk])
        self.confusion += counts.reshape(self.classes, self.classes)

    def _counted(self, labels: NDArray[Any], predictions: NDArray[Any]) -> NDArray[np.int64]:
        """(K * K,) counts of ``label * K + prediction``."""
        valid = (labels >= 0) & (labels < self.classes)
        rows, columns = labels[valid].astype(np.int64), predictions[valid].astype(np.int64)
        if columns.size and not (columns.min() >= 0 and columns.max() < self.classes):
            raise UsageError(f"predictions {columns.min()}..{columns.max()} must be in 0..{self.classes - 1}")
        return np.bincount(rows * self.classes + columns, minlength=self.classes**2)

    @property
    def scored(self) -> NDArray[np.int64]:
        """The part of ``confusion`` that the figures are made from."""
        return self.confusion[:-1, :-1] if self.ignore_last else self.confusion

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels whose class is right (the reference's OA)."""
        return float(_quotient(np.trace(self.scored), self.scored.sum()))

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) intersection over union."""
        hits = np.diagonal(self.scored)
        return _quotient(hits, self.scored.sum(axis=0) + self.scored.sum(axis=1) - hits)

    @property
    def precision(self) -> NDArray[np.float64]:
        """(K,) share of the pixels given this class that have it."""
        return self._defined(_quotient(np.diagonal(self.scored), self.scored.sum(axis=0)))

    @property
    def recall(self) -> NDArray[np.float64]:
        """(K,) share of the pixels of this class that were given it."""
        return self._defined(_quotient(np.diagonal(self.scored), self.scored.sum(axis=1)))

    @property
    def f1(self) -> NDArray[np.float64]:
        """(K,) harmonic mean of precision and recall."""
        precision, recall = self.precision, self.recall
        return self._defined(_quotient(2 * precision * recall, precision + recall))

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur in labels or predictions (mIoU)."""
        return _mean(self.iou)

    @property
    def frequency_weighted_iou(self) -> float:
        """IoU weighted by the classes' share of the labels (FWIoU)."""
        weights = self.scored.sum(axis=1)
        return float(_quotient(np.nansum(weights * self.iou), weights.sum()))

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON-ready data, NaN as None."""
        columns = {"iou": self.iou, "precision": self.precision, "recall": self.recall, "f1": self.f1}
        per_class = [
            {"index": index, "pixels": int(pixels), **{name: _json(column[index]) for name, column in columns.items()}}
            for index, pixels in enumerate(self.scored.sum(axis=1))
        ]
        return {
            "classes": self.classes,
            "ignore_last": self.ignore_last,
            "absent": self.absent,
            "pixels": int(self.scored.sum()),
            "pixel_accuracy": _json(self.pixel_accuracy),
            "frequency_weighted_iou": _json(self.frequency_weighted_iou),
            **{f"mean_{name}": _json(_mean(column)) for name, column in columns.items()},
            "per_class": per_class,
            "confusion": self.confusion.tolist(),
        }

    def _defined(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.nan_to_num(values, nan=0.0) if self.absent == "zero" else values


def _quotient(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    """Quotients in float64, NaN for 0/0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.true_divide(numerator, denominator), np.float64)


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of what is not NaN; NaN where all is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def _json(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
