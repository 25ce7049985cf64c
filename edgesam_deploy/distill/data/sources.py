"""What every data set looks like from here on: a list of names, and a picture with annotations for each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.errors import DataError, UnknownName
from edgesam_deploy.toolkits import require

FloatArray = NDArray[np.float32]
Kind = Literal["sa1b", "sa1b_tar", "coco", "lvis", "lvis_cocofied", "pairs", "semantic"]


@dataclass(frozen=True)
class Annotated:
    """A picture (H, W, 3) uint8 RGB and what is known of its N objects, in its own pixels.

    boxes (N, 4) as x0, y0, x1, y1; points (N, 1, 2) as (x, y), one inside each object, or None where the data set has
    none; masks (N, H, W) bool, or None where they were not asked for; labels (H, W) integers of a semantic data set,
    which has no objects.
    """

    name: str
    image: NDArray[np.uint8]
    boxes: FloatArray
    points: FloatArray | None = None
    masks: NDArray[np.bool_] | None = None
    labels: NDArray[np.int64] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]


class Source(ABC):
    """Pictures by index; ``names`` is sorted, so that "the first thousand" means the same on every file system."""

    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, index: int, *, masks: bool) -> Annotated:
        """The picture at ``index``. Raises DataError or ImageError naming the file where it is damaged."""


def open_source(kind: str, root: Path, split: str) -> Source:
    """The data set of that layout under ``root``. Raises UnknownName, and DataError where nothing of it is there."""
    if kind not in get_args(Kind):
        raise UnknownName("data set layout", kind, get_args(Kind))
    if not root.exists():
        raise DataError(f"{root}: no such folder; `edgesam-deploy data synthesize {root}` makes one without a download")
    from edgesam_deploy.distill.data.coco import CocoSource
    from edgesam_deploy.distill.data.pairs import PairSource, SemanticSource
    from edgesam_deploy.distill.data.sa1b import Sa1bFolder, Sa1bTars

    makers: dict[str, Callable[[], Source]] = {
        "sa1b": lambda: Sa1bFolder(root, split),
        "sa1b_tar": lambda: Sa1bTars(root),
        "pairs": lambda: PairSource(root),
        "semantic": lambda: SemanticSource(root, split),
    }
    source = makers[kind]() if kind in makers else CocoSource(root, split, kind)
    if not len(source):
        raise DataError(f"{root}: no picture of the layout {kind!r} in it (split {split!r}); see docs/training.md")
    return source


# --- what the readers of annotations share ---------------------------------------------------------------------------


def decode_masks(segmentations: Sequence[Any], size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """(N, H, W) bool from COCO's run lengths (compressed or not) or polygons. Raises DataError naming the object."""
    coco = require("pycocotools.mask", "reading run-length masks")
    height, width = size
    masks = np.zeros((len(segmentations), height, width), dtype=np.bool_)
    for number, entry in enumerate(segmentations):
        try:
            masks[number] = _decoded(coco, entry, size)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as e:
            raise DataError(f"{where}: the mask of object {number} is damaged: {e}") from e
    return masks


def _decoded(coco: Any, entry: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    if isinstance(entry, list):
        return np.asarray(coco.decode(coco.merge(coco.frPyObjects(entry, *size))), dtype=np.bool_)
    if tuple(entry["size"]) != size:
        raise ValueError(
            f"it is of {entry['size'][0]} x {entry['size'][1]} pixels, the picture of {size[0]} x {size[1]}"
        )
    runs = entry["counts"] if isinstance(entry["counts"], list) else compressed_runs(entry["counts"])
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise ValueError(f"its run lengths sum to {sum(runs)}, not to {size[0] * size[1]}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size[::-1]).T


def compressed_runs(text: str | bytes) -> list[int]:
    """COCO's compressed run lengths as numbers. pycocotools decodes damaged text beyond its buffer; this one refuses.

    Each number is in groups of five bits, low first, plus 48 as ASCII; bit 5 says that more follow, and from the fourth
    number on it is the difference to the one two places before.
    """
    data = text.encode() if isinstance(text, str) else text
    runs: list[int] = []
    position = 0
    while position < len(data):
        value, shift, more = 0, 0, True
        while more:
            if position >= len(data) or not 48 <= data[position] < 112:
                raise ValueError("its run lengths are cut short or no COCO text")
            group = data[position] - 48
            value |= (group & 31) << shift
            more, shift, position = bool(group & 32), shift + 5, position + 1
            if not more and group & 16:
                value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def xywh_to_xyxy(boxes: Sequence[Any], where: str) -> FloatArray:
    """(N, 4) corners from COCO's x, y, width, height. Raises DataError for what is not four finite numbers each."""
    try:
        array = np.asarray(boxes, dtype=np.float32).reshape(len(boxes), 4)
    except (TypeError, ValueError) as e:
        raise DataError(f"{where}: a box is not four numbers: {e}") from e
    if not np.isfinite(array).all():
        raise DataError(f"{where}: a box holds NaN or infinity")
    return np.concatenate([array[:, :2], array[:, :2] + array[:, 2:]], axis=1)


def boxes_of(masks: NDArray[np.bool_]) -> FloatArray:
    """(N, 4) tight boxes, the far corner exclusive; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for number, mask in enumerate(masks):
        ys, xs = np.nonzero(mask)
        if len(ys):
            boxes[number] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    return boxes
