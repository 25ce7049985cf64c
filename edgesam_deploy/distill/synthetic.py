"""Synthetic scenes with exact masks in SA-1B's layout on disk, so that everything of training runs without a download.

A scene is a textured background and objects that cover each other. Each object is star-shaped, a radius per angle, so
that a pixel's distance to the outline, and with it the mask and the antialiased edge, has a closed form; some are
rings. What makes it less than trivial: textures on both sides of an outline, soft shadows outside the masks, contrast
that can be low, vignetting and sensor noise. Every number is drawn from (seed, split, index): a scene does not depend
on how many others are made, nor on their order.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, shift, zoom

from edgesam_deploy.errors import OutputError, UsageError
from edgesam_deploy.model.masks import mask_to_rle, rle_to_coco

FloatImage = NDArray[np.float64]
MIN_VISIBLE = 0.004  # of the picture's area; what is covered more than that is no object to ask for
FEWEST, LARGEST = 3, 0.33  # objects; radius as a share of the short side
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Scene:
    """image (H, W, 3) uint8 RGB; masks (N, H, W) bool of what is visible of each object, disjoint, N at least 1."""

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]


@dataclass(frozen=True)
class Style:
    """How hard scenes are. most: objects drawn, from 3 on (1 to 64). smallest: radius of an object before it is
    stretched, as a share of the short side (0.01 to 0.33). rings: share of objects with a hole (0 to 1). covered: an
    object of which others hide a larger share is in the picture, but no mask is asked of it (0 to 1).

    Raises UsageError for values outside.
    """

    most: int = 9
    smallest: float = 0.07
    rings: float = 0.15
    covered: float = 1.0

    def __post_init__(self) -> None:
        shares = 0 <= self.rings <= 1 and 0 <= self.covered <= 1
        if not (1 <= self.most <= 64 and 0.01 <= self.smallest <= LARGEST and shares):
            raise UsageError(f"{self}: most lies in 1..64, smallest in 0.01..{LARGEST}, rings and covered in 0..1")


def scene(seed: int, split: str, index: int, size: int, style: Style | None = None) -> Scene:
    """One picture; ``size`` is its long side, the other is 0.6 to 1 of it."""
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    while True:  # a scene in which nothing is large enough is drawn again, by the same generator
        drawn = _draw(rng, size, style or Style())
        if len(drawn.masks):
            return drawn


def _draw(rng: np.random.Generator, size: int, style: Style) -> Scene:
    sides = [size, max(1, int(size * rng.uniform(0.6, 1.0)))]
    height, width = sides if rng.random() < 0.5 else sides[::-1]
    canvas = _texture(rng, height, width, size)
    owner, whole = np.full((height, width), -1), []
    count = int(rng.integers(min(FEWEST, style.most), style.most + 1))
    for number in range(count):
        scale = min(height, width) * rng.uniform(style.smallest, LARGEST)
        centre = rng.uniform(0.08, 0.92, 2) * (height, width)
        window = _window(centre, 1.5 * scale + _reach(size) * 3, (height, width))
        outside = _distance(rng, window, centre, scale, style.rings)
        coverage = np.clip(0.5 - outside, 0.0, 1.0)[..., None]
        under = _shadowed(rng, canvas[window], outside, _reach(size))
        canvas[window] = under * (1 - coverage) + _texture(rng, outside.shape[0], outside.shape[1], size) * coverage
        owner[window][outside < 0] = number
        whole.append(np.count_nonzero(outside < 0))
    image = _photographed(rng, canvas)
    masks = owner[None] == np.arange(count)[:, None, None]
    seen = masks.sum((1, 2))
    asked = (seen >= MIN_VISIBLE * owner.size) & (seen >= (1 - style.covered) * np.array(whole))
    return Scene(image, masks[asked])


def _reach(size: int) -> int:
    """How far a shadow falls, in pixels."""
    return max(1, int(0.04 * size))


def _window(centre: FloatImage, radius: float, shape: tuple[int, int]) -> tuple[slice, slice]:
    """The part of the picture that an object and its shadow can touch; the rest is not computed."""
    low, high = np.maximum(centre - radius, 0).astype(int), np.ceil(centre + radius).astype(int)
    return slice(low[0], min(high[0], shape[0])), slice(low[1], min(high[1], shape[1]))


def _distance(
    rng: np.random.Generator, window: tuple[slice, slice], centre: FloatImage, scale: float, rings: float
) -> FloatImage:
    """Signed distance in pixels, nearly, to the outline of a random object, over the window; negative inside."""
    y, x = np.mgrid[window] + 0.5
    dy, dx = y - centre[0], x - centre[1]
    stretch, turn = rng.uniform(0.55, 1.0), rng.uniform(0, 2 * np.pi)
    u = dx * np.cos(turn) + dy * np.sin(turn)
    v = (dy * np.cos(turn) - dx * np.sin(turn)) / stretch
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    outline = OUTLINES[rng.integers(len(OUTLINES))](rng, angle)
    distance: FloatImage = (radius - scale * outline) * stretch
    if rng.random() < rings:  # a ring: what lies within the inner outline is outside
        distance = np.maximum(distance, (scale * rng.uniform(0.35, 0.6) * outline - radius) * stretch)
    return distance


def _ellipse(rng: np.random.Generator, angle: FloatImage) -> FloatImage:
    return np.ones_like(angle)


def _polygon(rng: np.random.Generator, angle: FloatImage) -> FloatImage:
    """A regular polygon of 3 to 7 sides: the distance to a side is the apothem over the cosine from its normal."""
    sides = int(rng.integers(3, 8))
    step = 2 * np.pi / sides
    apothem: FloatImage = np.cos(np.pi / sides) / np.cos(np.mod(angle, step) - step / 2)
    return apothem


def _star(rng: np.random.Generator, angle: FloatImage) -> FloatImage:
    points, depth = int(rng.integers(4, 8)), rng.uniform(0.3, 0.5)
    zigzag = np.abs(np.mod(angle * points / np.pi, 2) - 1)  # 1 at the tips
    tips: FloatImage = 1 - depth * (1 - zigzag)
    return tips


def _blob(rng: np.random.Generator, angle: FloatImage) -> FloatImage:
    radius = np.ones_like(angle)
    for harmonic in range(2, 7):
        radius += rng.normal(0, 0.22 / harmonic) * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
    clipped: FloatImage = np.clip(radius, 0.4, 1.5)
    return clipped


OUTLINES: tuple[Callable[[np.random.Generator, FloatImage], FloatImage], ...] = (_ellipse, _polygon, _star, _blob)


def _texture(rng: np.random.Generator, height: int, width: int, unit: int) -> FloatImage:
    """(H, W, 3) in 0..1: a colour that drifts, with stripes, checks, grain or nothing on it; lengths by ``unit``."""
    y, x = np.mgrid[:height, :width] / unit
    turn = rng.uniform(0, 2 * np.pi)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    colour = rng.uniform(0.08, 0.92, 3)
    other = np.clip(colour + rng.normal(0, 0.35, 3), 0.0, 1.0)
    kind, pitch = int(rng.integers(5)), rng.uniform(8, 40)
    if kind == 0:
        amount = along - along.min()
    elif kind == 1:
        amount = 0.5 + 0.5 * np.sin(2 * np.pi * pitch * along)
    elif kind == 2:
        amount = ((np.floor(pitch * along) + np.floor(pitch * across)) % 2).astype(np.float64)
    elif kind == 3:
        amount = _grain(rng, height, width, int(rng.integers(4, 24)))
    else:
        amount = _grain(rng, height, width, 3)
    mixed: FloatImage = colour + (other - colour) * amount[..., None]
    return mixed


def _grain(rng: np.random.Generator, height: int, width: int, cells: int) -> FloatImage:
    """(H, W) smooth noise in 0..1 with about ``cells`` bumps along a side."""
    coarse = rng.uniform(size=(cells + 1, cells + 1))
    grown: FloatImage = zoom(coarse, (height / cells, width / cells), order=1)[:height, :width]
    return grown


def _shadowed(rng: np.random.Generator, canvas: FloatImage, outside: FloatImage, reach: int) -> FloatImage:
    """The canvas under an object's soft shadow, which falls to one side and belongs to no mask."""
    if rng.random() < 0.4:
        return canvas
    offset = rng.integers(-reach, reach + 1, 2)
    moved = shift(np.where(outside < 0, 1.0, 0.0), offset, order=0)
    soft = gaussian_filter(moved, rng.uniform(0.3, 1.0) * reach)
    darker: FloatImage = canvas * (1 - rng.uniform(0.2, 0.6) * soft[..., None])
    return darker


def _photographed(rng: np.random.Generator, canvas: FloatImage) -> NDArray[np.uint8]:
    """Exposure, vignetting and noise of a camera; (H, W, 3) uint8."""
    height, width = canvas.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = rng.uniform(0.75, 1.15) * (1 - rng.uniform(0, 0.3) * (x**2 + y**2) / 2)
    noisy = canvas * light[..., None] + rng.normal(0, rng.uniform(0.0, 0.05), canvas.shape)
    image: NDArray[np.uint8] = np.round(np.clip(noisy, 0, 1) * 255).astype(np.uint8)
    return image


# --- on disk ---------------------------------------------------------------------------------------------------------


def annotation(drawn: Scene, stem: str, image_id: int, rng: np.random.Generator) -> dict[str, Any]:
    """SA-1B's JSON of a picture: boxes (x, y, width, height), one point inside each mask, COCO run lengths."""
    height, width = drawn.image.shape[:2]
    rows = []
    for number, mask in enumerate(drawn.masks):
        ys, xs = np.nonzero(mask)
        pick = int(rng.integers(len(xs)))
        box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
        rows.append(
            {
                "id": image_id * 100 + number,
                "segmentation": rle_to_coco(mask_to_rle(mask)),
                "bbox": box,
                "area": len(xs),
                "point_coords": [[float(xs[pick]), float(ys[pick])]],
                "predicted_iou": 1.0,
                "stability_score": 1.0,
                "crop_box": [0, 0, width, height],
            }
        )
    image = {"image_id": image_id, "width": width, "height": height, "file_name": f"{stem}.jpg"}
    return {"image": image, "annotations": rows}


def synthesize(
    folder: Path,
    *,
    count: int,
    seed: int = 0,
    size: int = 256,
    split: str = "train",
    style: Style | None = None,
    go_on: bool = False,
) -> Iterator[str]:
    """Write scenes 0..count-1 of ``split``; yields each stem once its two files are there.

    ``folder``/{images,annotations}/{split}/scene_{index}.{jpg,json}. The same arguments give the same files (JPEG's
    bytes are those of the installed libjpeg). ``go_on`` completes a split whose making was interrupted. Raises
    UsageError for values that make no scene, OutputError where the split exists already, or to go on with holds other
    scenes, or where the disk refuses.
    """
    if count < 1 or not 32 <= size <= 4096:
        raise UsageError(f"count {count}, size {size}: at least 1 scene, of 32 to 4096 pixels")
    images, annotations = (folder / kind / split for kind in ("images", "annotations"))

    def content(index: int) -> tuple[Scene, str]:
        drawn = scene(seed, split, index, size, style)
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index, 1])
        return drawn, json.dumps(annotation(drawn, f"scene_{index:06d}", index, rng), sort_keys=True)

    found = [path for place in (images, annotations) if place.exists() for path in place.iterdir()]
    if found and not go_on:
        raise OutputError(f"{found[0].parent} holds files already; choose another folder or --split")
    written = sorted(path for path in found if path.suffix == ".json")
    strange = [path for path in found if not path.name.startswith(("scene_", ".scene_"))]
    if strange or (written and written[0].read_text() != content(0)[1]):
        raise OutputError(f"{images} holds other pictures than these scenes; choose another folder, or remove it")
    try:
        for place in (images, annotations):
            place.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            stem = f"scene_{index:06d}"
            if index < len(written):
                yield stem
                continue
            drawn, text = content(index)
            Image.fromarray(drawn.image).save(images / f"{stem}.jpg", quality=JPEG_QUALITY)
            partial = annotations / f".{stem}"  # an annotation that is there is whole, and so is its picture
            partial.write_text(text)
            partial.replace(annotations / f"{stem}.json")
            yield stem
    except OSError as e:
        raise OutputError(f"cannot write scenes to {folder}: {e.strerror or e}") from e
