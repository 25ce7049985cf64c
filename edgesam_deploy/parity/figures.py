"""How far two results are apart, in the field's terms, and the detectors of results that mean nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.model.prompts import FloatArray


@dataclass(frozen=True)
class Difference:
    """One output of one case: artifact against reference."""

    picture: str
    case: str
    output: str
    max_abs: float
    relative_l2: float
    decibels: float
    reference_std: float
    mask_iou: float | None = None  # the worst over the masks, at the picture's size
    decided_mask_iou: float | None = None  # the same over the pixels that the reference decides
    flipped_pixels: float | None = None  # share of all pixels
    order_kept: bool | None = None  # scores sorted alike, wherever they differ by more than the margin
    best_mask_flip: bool | None = None
    class_flips: float | None = None  # semantic models: share of pixels with another class
    score_pixels: float | None = None  # stability scores: pixels by which a count differs beyond the relative bound


def summarise(rows: Sequence[Difference]) -> dict[str, Any]:
    """Worst figures over rows, by output."""
    worst: dict[str, Any] = {}
    for output in dict.fromkeys(row.output for row in rows):
        mine = [row for row in rows if row.output == output]
        worst[output] = {
            "max_abs": max(r.max_abs for r in mine),
            "relative_l2": max(r.relative_l2 for r in mine),
            "decibels": min(r.decibels for r in mine),
        }
    ious = [r.mask_iou for r in rows if r.mask_iou is not None]
    flips = [r.flipped_pixels for r in rows if r.flipped_pixels is not None]
    return {
        "outputs": worst,
        "mask_iou": min(ious, default=None),
        "decided_mask_iou": min((r.decided_mask_iou for r in rows if r.decided_mask_iou is not None), default=None),
        "flipped_pixels": max(flips, default=None),
        "class_flips": max((r.class_flips for r in rows if r.class_flips is not None), default=None),
        "best_mask_flips": sum(bool(r.best_mask_flip) for r in rows),
        "order_changes": sum(r.order_kept is False for r in rows),
        "cases": len({(r.picture, r.case) for r in rows}),
        "pictures": len({r.picture for r in rows}),
    }


def difference(
    picture: str, case: str, output: str, reference: FloatArray, other: FloatArray, **more: Any
) -> Difference:
    if reference.shape != other.shape:
        infinite = math.inf
        return Difference(picture, case, output, infinite, infinite, -infinite, float(reference.std()), **more)
    a, b = reference.astype(np.float64), other.astype(np.float64)
    error, size = float(np.linalg.norm(b - a)), float(np.linalg.norm(a))
    relative = 0.0 if error == 0 else error / size if size else math.inf
    decibels = 999.0 if relative == 0 else -20 * math.log10(relative) if math.isfinite(relative) else -math.inf
    return Difference(picture, case, output, float(np.abs(b - a).max()), relative, decibels, float(a.std()), **more)


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """The worst intersection over union of corresponding masks (..., H, W); 1 where both are empty."""
    if a.shape != b.shape:
        return 0.0
    both = (a & b).sum((-1, -2)).astype(np.float64)
    either = (a | b).sum((-1, -2)).astype(np.float64)
    return float(np.where(either == 0, 1.0, both / np.maximum(either, 1)).min())


def dead(what: str, reference: FloatArray, other: FloatArray) -> list[str]:
    """NaN, a constant, or saturation, where the reference has none."""
    if not np.isfinite(other).all():
        return [f"{what}: NaN or infinity"]
    findings = []
    if other.std() < 1e-3 * reference.std():
        findings.append(f"{what}: constant output")
    largest = np.abs(other).max()
    share, usual = (float((np.abs(x) >= 0.999 * np.abs(x).max()).mean()) for x in (other, reference))
    if largest > 0 and share > 0.05 and share > 10 * usual:
        findings.append(f"{what}: saturated, {share:.0%} of the values at {largest:.4g}")
    return findings


def ignores_input(what: str, pairs: Sequence[tuple[FloatArray, FloatArray]]) -> list[str]:
    """Found when every two artifact outputs are nearly equal although the reference's are not."""
    if len(pairs) < 2:
        return []
    theirs, ours = (max(float(np.abs(pair[i] - pairs[0][i]).max()) for pair in pairs[1:]) for i in (0, 1))
    return [what] if ours < 1e-3 * theirs else []
