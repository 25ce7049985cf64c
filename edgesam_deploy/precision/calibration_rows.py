"""What quantised parts are calibrated with: pictures for the encoder, its features and prompts for the decoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.contract import Interface
from edgesam_deploy.errors import ImageError, UsageError
from edgesam_deploy.model.prompts import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, EMPTY, FOREGROUND, PADDING
from edgesam_deploy.model.transforms import read_image, resized_size
from edgesam_deploy.precision.calibration import calibration_files

Arrays = Mapping[str, NDArray[Any]]
CALIBRATION = "calibration.json"  # in the bundle: which pictures, by SHA-256, and how many samples of them
HELD_OUT = "hopper.jpg"  # of the shipped photographs: what parity is judged on must be new to the artifact
SHIPPED = "shipped photographs"

Prompt = tuple[tuple[float, float, int], ...]  # (x, y, label) in fractions of the picture
_PROMPTS: tuple[Prompt, ...] = (
    ((0.5, 0.5, FOREGROUND), (0, 0, PADDING)),
    ((0.35, 0.6, FOREGROUND), (0.7, 0.3, BACKGROUND), (0, 0, PADDING)),
    ((0.2, 0.15, BOX_TOP_LEFT), (0.8, 0.9, BOX_BOTTOM_RIGHT)),
    ((0.6, 0.55, FOREGROUND), (0.4, 0.3, BOX_TOP_LEFT), (0.95, 0.8, BOX_BOTTOM_RIGHT)),
)


@dataclass(frozen=True)
class CalibrationSet:
    """Pictures by name, where they come from, and which files of the folder could not be read, with the reason."""

    source: str
    pictures: dict[str, NDArray[np.uint8]]
    sha256: dict[str, str]
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What the bundle says of it."""
        rest = {key: value for key, value in asdict(self).items() if key in ("source", "left_out")}
        return {**rest, "pictures": self.sha256}


def calibration_set(folder: str | None) -> CalibrationSet:
    """The pictures of ``folder``, or the shipped photographs but for the one that parity is judged on.

    Raises UsageError where no picture in it can be read.
    """
    pictures: dict[str, NDArray[np.uint8]] = {}
    left_out: list[str] = []
    files = [path for path in calibration_files(folder) if folder is not None or path.name != HELD_OUT]
    for path in files:
        try:
            pictures[path.name] = read_image(path)
        except ImageError as e:
            left_out.append(f"{path.name}: {e}".replace(f"{path.parent}/", ""))
    if not pictures:
        raise UsageError(f"--calibration {folder}: no picture in it can be read ({left_out[0]})")
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.name in pictures}
    return CalibrationSet(SHIPPED if folder is None else Path(folder).name, pictures, hashes, tuple(left_out))


def decoder_rows(interface: Interface, picture: NDArray[np.uint8], features: Arrays) -> list[Arrays]:
    """Inputs of the decoder for one picture: the encoder's outputs with a prompt of each kind."""
    height, width = resized_size(picture.shape[0], picture.shape[1], interface.image_size)
    assert isinstance(interface.points, int)
    assert isinstance(interface.batch, int)
    usable = [prompt for prompt in _PROMPTS if len(prompt) <= interface.points]
    rows = [_slots(prompt, interface.points, height, width) for prompt in usable or [_PROMPTS[0][:1]]]
    return [
        {
            **features,
            "point_coords": np.repeat(coords, interface.batch, 0),
            "point_labels": np.repeat(labels, interface.batch, 0),
        }
        for coords, labels in rows
    ]


def _slots(prompt: Prompt, count: int, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(1, N, 2) in pixels of the model's frame and (1, N), the rest of the slots empty."""
    coords = np.zeros((1, count, 2), np.float32)
    labels = np.full((1, count), EMPTY, np.float32)
    for slot, (x, y, label) in enumerate(prompt):
        coords[0, slot] = x * width, y * height
        labels[0, slot] = label
    return coords, labels
