"""Pictures to calibrate with: a folder of the user's, or the shipped photographs, as the artifact's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgesam_deploy.contract import Interface, SegmenterInterface
from edgesam_deploy.errors import ImageError, UsageError
from edgesam_deploy.model.semantic import preprocess as preprocess_whole
from edgesam_deploy.model.transforms import preprocess, read_image, resize_longest_side

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
Pictures = Mapping[str, NDArray[np.uint8]]


def calibration_files(folder: str | Path | None) -> list[Path]:
    """The pictures of a folder by name, or the shipped photographs. Raises UsageError for a folder without any."""
    place = Path(str(files("edgesam_deploy") / "photographs")) if folder is None else Path(folder)
    if not place.is_dir():
        raise UsageError(f"--calibration {place}: no such folder; give one with pictures in it")
    found = sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"--calibration {place}: no picture in it ({', '.join(sorted(SUFFIXES))})")
    return found


def check_calibration(folder: str | Path | None) -> None:
    """Raise UsageError for a folder without pictures, ImageError for a file in it that is none: before anything is
    built, since only headers are read.
    """
    for path in calibration_files(folder):
        try:
            Image.open(path).close()
        except UnidentifiedImageError as error:
            raise ImageError(
                f"--calibration: {path} is not a picture Pillow can read; take it out, or convert it to PNG or JPEG"
            ) from error


def calibration_pictures(folder: str | Path | None = None) -> dict[str, NDArray[np.uint8]]:
    """(H, W, 3) uint8 RGB by file name. Raises UsageError for an empty folder, ImageError for a broken picture."""
    return {path.name: read_image(path) for path in calibration_files(folder)}


def encoder_inputs(interface: Interface | SegmenterInterface, picture: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What the first part of an artifact takes for a picture, by name, as the predictors feed it."""
    size = interface.image_size
    if isinstance(interface, SegmenterInterface):
        if not interface.embed_preprocess:
            return {"image": preprocess_whole(picture, size)}
        whole = Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR)
        return {"image": np.asarray(whole)[None]}
    if not interface.embed_preprocess:
        return {"image": preprocess(picture, size)[0]}
    resized = resize_longest_side(picture, size)
    height, width = resized.shape[:2]
    padded = np.zeros((1, size, size, 3), np.uint8)
    padded[0, :height, :width] = resized
    return {"image": padded, "image_size": np.array([height, width], np.float32)}
