"""COCO and LVIS annotation files, read by pycocotools: one JSON file for all pictures."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.distill.data.sources import Annotated, Source, decode_masks, xywh_to_xyxy
from edgesam_deploy.errors import DataError
from edgesam_deploy.model.transforms import read_image
from edgesam_deploy.toolkits import require

FILES = {
    "coco": "instances_{split}2017.json",
    "lvis": "lvis_v1_{split}.json",
    "lvis_cocofied": "lvis_v1_{split}_cocofied.json",
}


class CocoSource(Source):
    """ROOT/annotations/{file of the kind} and ROOT/{trainval or split}/{picture}; crowds are left out, as are the
    pictures in ROOT/annotations/ignore.json (a list of ids) and those without an object (``all_ids`` has these). No
    prompt points.
    """

    def __init__(self, root: Path, split: str, kind: str = "coco", file: Path | None = None) -> None:
        self.file = file or root / "annotations" / FILES[kind].format(split=split)
        self.api = load_annotations(self.file)
        ignored = set(_ignored(root / "annotations" / "ignore.json"))
        self.all_ids = sorted(i for i in self.api.imgs if i not in ignored)
        self.ids = [i for i in self.all_ids if self._objects(i)]
        self.names = [str(i) for i in self.ids]
        self.folders = [root / "trainval", root / split, root / f"{split}2017", root]

    def _objects(self, image_id: int) -> list[dict[str, Any]]:
        found = (self.api.anns[a["id"]] for a in self.api.imgToAnns[image_id])
        return sorted((a for a in found if not a.get("iscrowd")), key=lambda a: a["id"])

    def picture(self, image_id: int) -> NDArray[np.uint8]:
        """(H, W, 3) RGB. Raises DataError where it is missing or of another size than the file says."""
        record = self.api.imgs[image_id]
        where = f"{self.file}: picture {record['id']}"
        # LVIS names its pictures by address only
        name = record.get("file_name") or Path(record.get("coco_url", "")).name
        path = next((folder / name for folder in self.folders if name and (folder / name).is_file()), None)
        if path is None:
            raise DataError(f"{where}: {name or 'no file name'}: not in {self.folders[0]} nor in {self.folders[1]}")
        image = read_image(path)
        if (record["height"], record["width"]) != image.shape[:2]:
            raise DataError(
                f"{where}: {path} is of {image.shape[:2]}, not of the {record['height']} x {record['width']}"
            )
        return image

    def read(self, index: int, *, masks: bool) -> Annotated:
        image_id = self.ids[index]
        image, where = self.picture(image_id), f"{self.file}: picture {image_id}"
        rows = self._objects(image_id)
        boxes = xywh_to_xyxy([row["bbox"] for row in rows], where)
        decoded = None
        if masks:
            decoded = decode_masks([row["segmentation"] for row in rows], image.shape[:2], where)
        return Annotated(self.names[index], image, boxes, None, decoded)


def load_annotations(file: Path) -> Any:
    """pycocotools' index of an annotation file. Raises DataError where it is missing or not in COCO's form."""
    coco = require("pycocotools.coco", "COCO annotations")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress to stdout, which is for results
            api = coco.COCO(str(file))
        if not all({"id", "height", "width"} <= image.keys() for image in api.imgs.values()):
            raise KeyError("a picture without id, height or width")
        if not all({"image_id", "bbox", "segmentation"} <= row.keys() for row in api.anns.values()):
            raise KeyError("an object without image_id, bbox or segmentation")
    except OSError as e:
        raise DataError(f"{file}: {e.strerror or e}; COCO's annotations are expected there") from e
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError) as e:
        raise DataError(f"{file}: not COCO's JSON: {type(e).__name__}: {e}") from e
    return api


def _ignored(file: Path) -> list[int]:
    if not file.is_file():
        return []
    try:
        return [int(np.int64(i)) for i in json.loads(file.read_text())]
    except (ValueError, TypeError) as e:
        raise DataError(f"{file}: must be a list of picture ids: {e}") from e
