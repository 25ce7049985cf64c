"""Files to calibrate with, of a folder of the user's or the shipped ones, and pictures as the artifact's inputs."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgesam_deploy.contract import Interface, SegmenterInterface
from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.semantic import preprocess as preprocess_whole
from edgesam_deploy.model.transforms import preprocess, resize_longest_side

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def calibration_files(folder: str | Path | None) -> list[Path]:
    """The pictures of a folder by name, or the shipped photographs. Raises UsageError for a folder without any."""
    place = Path(str(files("edgesam_deploy") / "photographs")) if folder is None else Path(folder)
    if not place.is_dir():
        raise UsageError(f"--calibration {place}: no such folder; give one with pictures in it")
    found = sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"--calibration {place}: no picture in it ({', '.join(sorted(SUFFIXES))})")
    return found


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
