"""Pictures of masks: overlays for looking at, PNGs for using. Written whole or not at all."""

from __future__ import annotations

import colorsys
import io
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgesam_deploy.errors import OutputError
from edgesam_deploy.model.masks import rle_to_mask

Picture = NDArray[np.uint8]
LARGEST = 1600  # pixels: an overlay is for looking at


def save_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """(H, W) bool as a one-channel PNG, 255 inside. Raises OutputError."""
    save_picture(path, mask.astype(np.uint8) * 255)


def save_picture(path: Path, picture: Picture) -> None:
    """(H, W) or (H, W, 3) uint8 as PNG. Raises OutputError."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    write_file(path, buffer.getvalue())


def write_file(path: Path, content: bytes) -> None:
    """Write through a temporary file in the same folder. Raises OutputError where the disk refuses."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {e.strerror}") from e


def overlay_masks(
    picture: Picture,
    masks: NDArray[np.bool_],
    scores: Sequence[float] | NDArray[np.float32],
    points: Sequence[Sequence[float]],
    box: Sequence[float] | None,
) -> Picture:
    """The masks side by side over the picture, best first, with their scores and the prompt drawn in."""
    order = np.argsort(-np.asarray(scores))
    panels = []
    for rank, index in enumerate(order):
        tinted = _tint(picture, masks[index], _colour(rank))
        panels.append(_annotated(tinted, f"mask {index}  score {scores[index]:.3f}", points, box))
    return np.concatenate(panels, axis=1)


def overlay_everything(picture: Picture, records: Sequence[Mapping[str, Any]]) -> Picture:
    """All masks over the picture, larger ones below, each in a colour of its own."""
    canvas = picture
    for rank, record in enumerate(sorted(records, key=lambda r: -int(r["area"]))):
        canvas = _tint(canvas, rle_to_mask(record["segmentation"]), _colour(rank))
    return np.asarray(_shrunk(Image.fromarray(canvas)))


def _colour(rank: int) -> tuple[int, int, int]:
    """Hues by the golden ratio: neighbours in rank are far apart."""
    r, g, b = colorsys.hsv_to_rgb((0.33 + rank * 0.618034) % 1, 0.75, 1.0)
    return round(255 * r), round(255 * g), round(255 * b)


def _tint(picture: Picture, mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> Picture:
    result = picture.copy()
    result[mask] = (0.45 * picture[mask] + 0.55 * np.array(colour)).astype(np.uint8)
    inner = mask.copy()
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    result[mask & ~inner] = (255, 255, 255)
    return result


def _shrunk(image: Image.Image) -> Image.Image:
    image.thumbnail((LARGEST, LARGEST))
    return image


def _annotated(picture: Picture, text: str, points: Sequence[Sequence[float]], box: Sequence[float] | None) -> Picture:
    width = picture.shape[1]
    image = _shrunk(Image.fromarray(picture))
    scale = image.width / width
    draw = ImageDraw.Draw(image)
    if box is not None:
        draw.rectangle([side * scale for side in box], outline=(255, 220, 0), width=2)
    radius = max(3, max(image.size) // 120)
    for x, y, *label in points:
        fill = (220, 40, 40) if label and label[0] == 0 else (40, 200, 60)
        centre = x * scale, y * scale
        corners = [centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius]
        draw.ellipse(corners, fill=fill, outline=(255, 255, 255))
    draw.rectangle([0, 0, 7 * len(text) + 6, 15], fill=(0, 0, 0))
    draw.text((3, 2), text, fill=(255, 255, 255))
    return np.asarray(image)
