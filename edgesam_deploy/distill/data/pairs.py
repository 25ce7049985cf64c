"""Pictures beside mask pictures: HQ-Seg-44K's folders, and semantic data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgesam_deploy.distill.data.sources import Annotated, Source, boxes_of
from edgesam_deploy.errors import DataError
from edgesam_deploy.model.transforms import read_image

PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
# HQ-Seg-44K's sets by folder: where its pictures and their masks lie (arXiv 2306.01567)
IMAGE_FOLDERS = ("im", "images")
MASK_FOLDERS = ("gt", "masks")


class PairSource(Source):
    """HQ-Seg-44K: under ROOT any number of sets, each with pictures .jpg and masks of the same stem .png, above 128.

    A set holds them in ``im`` and ``gt`` (DIS5K, ThinObject5K), or side by side (the cascade_psp sets: DUTS, ECSSD,
    MSRA10K, FSS). One object a picture.
    """

    def __init__(self, root: Path) -> None:
        found: dict[str, tuple[Path, Path]] = {}
        for picture in sorted(root.rglob("*.jpg")):
            mask = _mask_beside(picture)
            if mask is not None:
                found[picture.relative_to(root).with_suffix("").as_posix()] = (picture, mask)
        self.files = dict(sorted(found.items()))
        self.names = list(self.files)

    def read(self, index: int, *, masks: bool) -> Annotated:
        picture, mask_file = self.files[self.names[index]]
        image, mask = read_image(picture), read_labels(mask_file) > 128
        _same_size(image, mask, mask_file)
        return Annotated(self.names[index], image, boxes_of(mask[None]), None, mask[None] if masks else None)


def _mask_beside(picture: Path) -> Path | None:
    places = [picture.with_suffix(".png")]
    if picture.parent.name in IMAGE_FOLDERS:
        places += [picture.parent.parent / name / f"{picture.stem}.png" for name in MASK_FOLDERS]
    return next((place for place in places if place.is_file()), None)


class SemanticSource(Source):
    """ROOT/{images,labels}/{split}/{stem}.*: a label picture per picture, one class index per pixel (CWSAM)."""

    def __init__(self, root: Path, split: str) -> None:
        self.images, self.labels = root / "images" / split, root / "labels" / split
        found = self.images.iterdir() if self.images.is_dir() else ()
        self.files = sorted((p for p in found if p.suffix.lower() in PICTURES), key=lambda p: p.stem)
        self.names = [path.stem for path in self.files]

    def read(self, index: int, *, masks: bool) -> Annotated:
        path = self.files[index]
        file = next((p for s in (".png", *PICTURES) if (p := self.labels / f"{path.stem}{s}").is_file()), None)
        if file is None:
            raise DataError(f"{self.labels / path.stem}.png: no such file; every picture needs its labels")
        image, labels = read_image(path), read_labels(file)
        _same_size(image, labels, file)
        return Annotated(path.stem, image, np.zeros((0, 4), np.float32), labels=labels)


def read_labels(path: Path) -> NDArray[np.int64]:
    """(H, W) sample values of a grey or palette picture, as stored. Raises DataError for a colour or broken one."""
    try:
        with Image.open(path) as file:
            values = np.asarray(file)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as e:
        raise DataError(f"{path}: not a readable picture: {e}") from e
    if values.ndim == 3 and (values[..., :1] == values[..., :3]).all():
        values = values[..., 0]  # grey stored as colour
    if values.ndim != 2:
        raise DataError(f"{path}: a picture in colour; masks and labels are one number per pixel")
    return values.astype(np.int64) * (255 if values.dtype == np.bool_ else 1)


def _same_size(image: NDArray[np.uint8], plane: NDArray[np.generic], file: Path) -> None:
    if image.shape[:2] != plane.shape:
        raise DataError(f"{file}: is of {plane.shape[0]} x {plane.shape[1]} pixels, its picture of {image.shape[:2]}")
