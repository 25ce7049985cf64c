"""Detectors that propose boxes for prompts: what one is, one light example, and those of plug-ins.

The reference projects prompt with the boxes of a region proposal network that needs a detection framework of its own.
Here a detector is anything that is called with a picture and gives boxes; install one as a plug-in (``plugins``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy import plugins
from edgesam_deploy.errors import DataError, EdgeSamDeployError, UnknownName

Boxes = NDArray[np.float32]


@runtime_checkable
class BoxDetector(Protocol):
    """Called with a picture (H, W, 3) uint8 RGB: boxes (N, 4) as x0, y0, x1, y1 in its pixels, the surest first, and
    their scores (N,). No box is a valid answer.
    """

    def __call__(self, image: NDArray[np.uint8], /) -> tuple[Boxes, NDArray[np.float32]]: ...


@dataclass(frozen=True)
class Regions:
    """The light example: what stands out from the colour of the picture's border, one box per connected region.

    Good for things on a plain ground (products, cells, scans), useless for street scenes. ``smallest``: share of the
    picture below which a region is dropped; ``most``: how many are kept, the largest first. A score is the region's
    share of its box.
    """

    smallest: float = 0.002
    most: int = 32

    def __call__(self, image: NDArray[np.uint8], /) -> tuple[Boxes, NDArray[np.float32]]:
        from scipy import ndimage

        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        distance = np.abs(image.astype(np.int16) - np.median(border, axis=0).astype(np.int16)).max(axis=-1)
        labels, count = ndimage.label(distance > _between(distance))
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        largest = [int(i) for i in np.argsort(-areas, kind="stable") if areas[i] >= self.smallest * distance.size]
        slices = ndimage.find_objects(labels)
        found = [(slices[i], areas[i]) for i in largest[: self.most]]
        boxes = np.array([[x.start, y.start, x.stop, y.stop] for (y, x), _ in found], np.float32).reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        return boxes, np.array([area for _, area in found], np.float32) / sides.prod(axis=1)


def _between(distance: NDArray[np.int16]) -> int:
    """The cut that separates ground from things best: the largest variance between the two classes (Otsu, 1979)."""
    counts = np.bincount(distance.ravel(), minlength=256)[:256].astype(np.float64)
    below, levels = counts.cumsum(), np.arange(256)
    total, mass = below[-1], (counts * levels).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = (mass[-1] * below - mass * total) ** 2 / (below * (total - below))
    return int(np.nanargmax(np.where(np.isfinite(apart), apart, -1)))


DETECTORS: Mapping[str, type[Regions]] = {"regions": Regions}


def detector_names() -> list[str]:
    """The detectors here, those of plug-ins last."""
    return [*DETECTORS, *(name for name in plugins.plugins(plugins.DETECTORS) if name not in DETECTORS)]


def make_detector(name: str) -> BoxDetector:
    """A detector by name. Raises UnknownName, or EdgeSamDeployError for a plug-in that does not load or is none."""
    if name not in detector_names():
        raise UnknownName("detector", name, detector_names())
    if name in DETECTORS:
        return DETECTORS[name]()
    made = plugins.load_plugin(plugins.DETECTORS, name)
    made = made() if isinstance(made, type) else made
    if not callable(made):
        raise EdgeSamDeployError(f"the plug-in {name} is not a detector: {made!r} cannot be called with a picture")
    detector: BoxDetector = made
    return detector


def proposed(detector: BoxDetector, image: NDArray[np.uint8]) -> list[list[float]]:
    """The detector's boxes, cut at the picture's border; those without area are left out. Raises DataError for an
    answer that is not boxes and scores.
    """
    height, width = image.shape[:2]
    try:
        boxes, scores = detector(image)
        corners = np.asarray(boxes, np.float64).reshape(-1, 4)
        fits = len(corners) == len(np.asarray(scores).reshape(-1)) and np.isfinite(corners).all()
    except (TypeError, ValueError) as e:
        raise DataError(f"the detector {detector!r} gave no boxes (N, 4) with scores (N,): {e}") from e
    if not fits:
        raise DataError(f"the detector {detector!r} gave boxes that are not finite, or not one score for each")
    corners = corners.clip(0, [width, height, width, height])
    return [row for row in corners.tolist() if row[2] > row[0] and row[3] > row[1]]
