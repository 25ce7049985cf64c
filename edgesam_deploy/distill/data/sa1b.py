"""SA-1B: a folder of pictures and JSON files, or the tars that it is published as."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_deploy.distill.data.sources import Annotated, FloatArray, Source, decode_masks, xywh_to_xyxy
from edgesam_deploy.errors import DataError
from edgesam_deploy.model.transforms import decode_image, read_image
from edgesam_deploy.toolkits import require

PICTURES = (".jpg", ".jpeg", ".png")


class Sa1bFolder(Source):
    """ROOT/{images,annotations}/{split}/{stem}.{jpg,json}, sorted by stem (the reference's listing is unsorted)."""

    def __init__(self, root: Path, split: str) -> None:
        self.images, self.annotations = root / "images" / split, root / "annotations" / split
        found = self.images.iterdir() if self.images.is_dir() else ()
        self.files = sorted((p for p in found if p.suffix.lower() in PICTURES), key=lambda p: p.stem)
        self.names = [path.stem for path in self.files]

    def read(self, index: int, *, masks: bool) -> Annotated:
        path = self.files[index]
        file = self.annotations / f"{path.stem}.json"
        try:
            data = file.read_bytes()
        except OSError as e:
            raise DataError(f"{file}: {e.strerror}; every picture needs its annotations") from e
        return annotated(path.stem, read_image(path), data, masks=masks, where=str(file))


class Sa1bTars(Source):
    """ROOT/*.tar, or one tar, as published: stem.jpg and stem.json side by side, in any order.

    The headers are read once, so that samples are read by position: shuffling, sharding and exact resume are then
    those of a folder, which a stream does not allow. webdataset says which members make one sample.
    """

    def __init__(self, root: Path) -> None:
        self.tars = sorted(root.glob("*.tar")) if root.is_dir() else [root]
        split_name = require("webdataset.tariterators", "reading SA-1B's tars").base_plus_ext
        members: dict[str, dict[str, tuple[int, int, int]]] = {}
        for number, tar in enumerate(self.tars):
            for name, offset, size in _members(tar):
                base, extension = split_name(name)
                if base is not None:
                    members.setdefault(Path(base).name, {})[f".{extension.lower()}"] = (number, offset, size)
        self.members = {stem: found for stem, found in sorted(members.items()) if found.keys() & set(PICTURES)}
        self.names = list(self.members)
        self._files: dict[int, Any] = {}
        self._owner = 0

    def read(self, index: int, *, masks: bool) -> Annotated:
        stem = self.names[index]
        found = self.members[stem]
        picture = next(extension for extension in PICTURES if extension in found)
        where = f"{self.tars[found[picture][0]]}: {stem}.json"
        if ".json" not in found:
            raise DataError(f"{where}: not in the tar; every picture needs its annotations")
        image = decode_image(self._bytes(*found[picture]), f"{stem}{picture}")
        return annotated(stem, image, self._bytes(*found[".json"]), masks=masks, where=where)

    def _bytes(self, number: int, offset: int, size: int) -> bytes:
        if self._owner != os.getpid():  # a worker of the loader must not share the file position of its parent
            self._files, self._owner = {}, os.getpid()
        if number not in self._files:
            self._files[number] = self.tars[number].open("rb")
        file = self._files[number]
        file.seek(offset)
        data: bytes = file.read(size)
        if len(data) < size:
            raise DataError(f"{self.tars[number]}: ends within a member; download it again")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_owner": 0}  # open files do not travel to a spawned worker


def _members(tar: Path) -> list[tuple[str, int, int]]:
    """(name, offset of the data, size) of every file in a tar. Raises DataError for what is none, or is cut short."""
    try:
        with tarfile.open(tar, "r:") as archive:
            return [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    except (OSError, tarfile.TarError) as e:
        raise DataError(f"{tar}: not a readable, uncompressed tar: {e}; download it again") from e


def annotated(stem: str, image: Any, data: bytes, *, masks: bool, where: str) -> Annotated:
    """A picture with SA-1B's JSON. Raises DataError where that is damaged, or of a picture of another size."""
    try:
        content = json.loads(data)
        declared, rows = content["image"], content["annotations"]
        size = (int(declared["height"]), int(declared["width"]))
        boxes = xywh_to_xyxy([row["bbox"] for row in rows], where)
        points = _points(rows)
        segmentations = [row["segmentation"] for row in rows] if masks else []
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise DataError(f"{where}: not SA-1B's JSON: {type(e).__name__}: {e}") from e
    if size != image.shape[:2]:
        raise DataError(
            f"{where}: says {size[0]} x {size[1]} pixels, the picture has {image.shape[0]} x {image.shape[1]}"
        )
    decoded = decode_masks(segmentations, size, where) if masks else None
    return Annotated(stem, image, boxes, points, decoded)


def _points(rows: list[Any]) -> FloatArray | None:
    """(N, 1, 2): the first point of each object; None where an object has none."""
    if not rows or any(not row.get("point_coords") for row in rows):
        return None
    return np.asarray([row["point_coords"][:1] for row in rows], dtype=np.float32).reshape(len(rows), 1, 2)
