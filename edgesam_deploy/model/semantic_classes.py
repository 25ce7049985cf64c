"""Names, colours and index pictures of semantic classes."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# The land cover classes that the mixture-of-experts descendants of CWSAM were trained on, by index.
LAND_COVER: Final = (
    "background", "dry land", "orchard", "paddy", "shrub", "arbor forest", "sparse forest", "other forest",
    "grassland", "dense buildings", "detached building", "greenhouse", "airport", "tailings pond", "open-pit mine",
    "quarry", "construction site", "cemetery", "impervious surface", "road", "railway", "bridge", "square", "stadium",
    "water", "dam (hydro)", "dam (non-hydro)", "desert", "bare land", "glacier", "cloud", "parking lot",
    "photovoltaic panel",
)  # fmt: skip

_ROWS = 256  # rows that are counted at a time: bincount makes 8 bytes of every pixel


def class_names(classes: int) -> tuple[str, ...]:
    """A name per class: LAND_COVER where there are as many, else ``class 0``, ``class 1``, ..."""
    return LAND_COVER if classes == len(LAND_COVER) else tuple(f"class {index}" for index in range(classes))


def class_totals(
    class_map: NDArray[Any], classes: int, values: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """(K,) float64: how many pixels of (H, W) each class has, or the sum of ``values`` (H, W) over them."""
    totals = np.zeros(classes)
    for top in range(0, len(class_map), _ROWS):
        rows = slice(top, top + _ROWS)
        weights = None if values is None else values[rows].ravel()
        totals += np.bincount(class_map[rows].ravel(), weights, classes)
    return totals


def class_map_png(class_map: NDArray[np.unsignedinteger[Any]]) -> bytes:
    """(H, W) uint8 or uint16 as a grey PNG file of that depth; the grey value is the class's index."""
    buffer = io.BytesIO()
    Image.fromarray(class_map).save(buffer, "PNG")
    return buffer.getvalue()


@lru_cache
def palette(classes: int) -> NDArray[np.uint8]:
    """(K, 3) uint8 RGB, read-only: black for class 0, then always the colour farthest from those before it.

    Far in CIELAB, among 512 that are not too dark to be told apart; beyond these they repeat. A class has the same
    colour whatever K is.
    """
    levels = np.linspace(0, 255, 8).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    # whole numbers, so that the choice does not hang on a machine's last digit
    lab = _lab(candidates).round().astype(np.int64)
    usable = lab[:, 0] >= 40
    nearest = np.where(usable, ((lab - lab[0]) ** 2).sum(axis=1), -1)
    chosen = [0]
    for _ in range(1, min(classes, 1 + int(usable.sum()))):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((lab - lab[chosen[-1]]) ** 2).sum(axis=1))
        nearest[chosen[-1]] = -1
    colours: NDArray[np.uint8] = candidates[np.resize(chosen, classes)]
    colours.setflags(write=False)
    return colours


def _lab(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """CIELAB (N, 3), white D65, of sRGB (N, 3) (IEC 61966-2-1)."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
