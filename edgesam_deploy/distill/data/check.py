"""Is a data set fit to train on? Every sample is read as training reads it, and what is odd about it is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_deploy.distill.data.sources import Annotated, Source
from edgesam_deploy.errors import DataError, ImageError

AREA_TOLERANCE = 1.0  # pixels by which a box may leave its picture or its mask


@dataclass
class Report:
    """What was found: ``broken`` samples cannot be used, ``odd`` ones can; name -> what is wrong."""

    pictures: int = 0
    objects: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check_source(source: Source, progress: Callable[[str], None] = lambda name: None) -> Report:
    """Read every sample of a source."""
    report = Report()
    for index, name in enumerate(source.names):
        progress(name)
        report.pictures += 1
        try:
            read = source.read(index, masks=True)
        except (DataError, ImageError) as e:
            report.broken[name] = str(e)
            continue
        report.objects += len(read.boxes)
        problems = _problems(read)
        if problems:
            report.odd[name] = "; ".join(problems)
    return report


def orphans(root: Path, split: str) -> list[str]:
    """Stems in SA-1B's annotations/{split} that have no picture."""
    folder = root / "annotations" / split
    if not folder.is_dir():
        return []
    pictures = {path.stem for path in (root / "images" / split).glob("*")}
    return sorted(path.stem for path in folder.glob("*.json") if path.stem not in pictures)


def _problems(read: Annotated) -> list[str]:
    if read.labels is not None:
        return [] if (read.labels >= 0).all() else ["labels below 0"]
    if not len(read.boxes):
        return ["no objects"]
    height, width = read.size
    found = []
    low, high = read.boxes[:, :2], read.boxes[:, 2:]
    outside = (low < -AREA_TOLERANCE).any(1) | (high > np.array([width, height]) + AREA_TOLERANCE).any(1)
    for problem, which in (("box outside of the picture", outside), ("box without area", (high <= low).any(1))):
        if which.any():
            found.append(f"{problem}: object {', '.join(map(str, np.flatnonzero(which)[:3]))}")
    if read.masks is not None:
        empty = ~read.masks.any((1, 2))
        if empty.any():
            found.append(f"empty mask: object {', '.join(map(str, np.flatnonzero(empty)[:3]))}")
    return found
