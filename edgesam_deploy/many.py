"""Masks of many pictures: prompts from a file, one picture in memory at a time, resumed where it stopped.

progress.jsonl   a line of what run this is, then a line per picture as soon as it is done
results.json     at the end: COCO's results format, one entry per prompt with its best mask
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgesam_deploy.errors import DataError, ImageError, OutputError, PromptError
from edgesam_deploy.model.masks import mask_to_box, mask_to_rle, rle_area, rle_to_coco
from edgesam_deploy.model.prompts import check_inside
from edgesam_deploy.model.transforms import read_image

PROGRESS, RESULTS = "progress.jsonl", "results.json"
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Prompt:
    """points as [x, y] or [x, y, label], box as x0, y0, x1, y1, both in the picture's pixels; ``extra`` goes into the
    result as it is (category_id, the annotation's id).
    """

    points: Sequence[Sequence[float]] = ()
    box: Sequence[float] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A picture with its prompts; ``prompts`` None: they are proposed when the picture is seen. ``name`` is what the
    list calls it: folders of a list may hold pictures of the same file name.
    """

    image_id: int
    name: str
    path: Path
    prompts: tuple[Prompt, ...] | None


# --- what to do ------------------------------------------------------------------------------------------------------


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder by name. Raises DataError where there is none."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        kinds = ", ".join(sorted(SUFFIXES))
        raise DataError(f"{folder} holds no pictures ({kinds}); of a video, extract the frames first")
    return found


def jobs_with(paths: Sequence[Path], prompts: tuple[Prompt, ...] | None) -> list[Job]:
    """The same prompts for every picture."""
    return [Job(index, path.name, path, prompts) for index, path in enumerate(paths, 1)]


def jobs_from(file: Path, folder: Path) -> list[Job]:
    """Pictures of ``folder`` and their prompts by a JSON file: COCO's annotations, whose boxes become prompts, or

        {"photo.jpg": [{"points": [[300, 190], [10, 10, 0]], "box": [100, 50, 500, 350], "category_id": 3}]}

    Raises DataError naming the entry that does not fit, or a picture that is not there.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except OSError as e:
        raise DataError(f"{file}: {e.strerror}") from e
    except ValueError as e:
        raise DataError(f"{file} is not JSON: {e}") from e
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected an object, either of pictures or COCO's, got {type(content).__name__}")
    is_coco = isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list)
    rows = _coco_rows(content, file) if is_coco else _own_rows(content, file)
    jobs = [Job(image_id, name, folder / name, prompts) for image_id, name, prompts in rows]
    missing = [job.path for job in jobs if not job.path.is_file()]
    if missing:
        raise DataError(f"{file} speaks of {len(missing)} pictures that are not there, the first {missing[0]}")
    return jobs


def _own_rows(content: Mapping[str, Any], file: Path) -> Iterator[tuple[int, str, tuple[Prompt, ...]]]:
    for index, (name, entries) in enumerate(sorted(content.items()), 1):
        if not isinstance(entries, list):
            raise DataError(f"{file}: {name}: expected a list of prompts, got {type(entries).__name__}")
        yield index, name, tuple(_prompt(entry, f"{file}: {name}[{i}]") for i, entry in enumerate(entries))


def _prompt(entry: Any, where: str) -> Prompt:
    known = {"points", "box"}
    if not isinstance(entry, dict) or not known & entry.keys():
        raise DataError(f"{where}: expected points, a box, or both")
    points, box = entry.get("points") or [], entry.get("box")
    if not (isinstance(points, list) and all(_numbers(point, (2, 3)) for point in points)):
        raise DataError(f"{where}: points are lists of x, y or x, y, label")
    if box is not None and not _numbers(box, (4,)):
        raise DataError(f"{where}: a box is a list of x0, y0, x1, y1")
    if not points and box is None:
        raise DataError(f"{where}: neither a point nor a box")
    return Prompt(points, box, {key: value for key, value in entry.items() if key not in known})


def _numbers(value: Any, counts: tuple[int, ...]) -> bool:
    numeric = isinstance(value, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
    return numeric and len(value) in counts and all(np.isfinite(value))


def _coco_rows(content: Mapping[str, Any], file: Path) -> Iterator[tuple[int, str, tuple[Prompt, ...]]]:
    prompts: dict[int, list[Prompt]] = {}
    try:
        for index, entry in enumerate(content["annotations"]):
            if not _numbers(entry["bbox"], (4,)):
                raise DataError(f"{file}: annotations[{index}]: bbox is not a list of x, y, width, height")
            x, y, width, height = entry["bbox"]
            extra = {"category_id": entry.get("category_id", 1), "annotation_id": entry.get("id")}
            prompts.setdefault(entry["image_id"], []).append(Prompt((), [x, y, x + width, y + height], extra))
        for image in content["images"]:
            yield int(image["id"]), image["file_name"], tuple(prompts.get(image["id"], ()))
    except (KeyError, TypeError, ValueError) as e:
        raise DataError(f"{file}: not COCO's layout: {type(e).__name__} {e}") from e


# --- doing it --------------------------------------------------------------------------------------------------------


class Ledger:
    """progress.jsonl of a folder: which pictures are done. ``identity`` is what must be the same to go on."""

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.out, self.path = out, out / PROGRESS
        self.identity = json.loads(json.dumps(identity))
        self.done: dict[str, int] = {}  # by name, the id that the results have

    def open(self) -> IO[str]:
        """The file, ready for another line; what a killed run left half-written is cut off.

        Raises OutputError where the folder holds another run's progress, or cannot be written.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            if not self.path.exists() or self.path.stat().st_size == 0:
                partial = self.out / f".{PROGRESS}.partial"
                with partial.open("w", encoding="utf-8") as file:
                    write_line(file, {"run": self.identity})
                partial.replace(self.path)  # the first line is whole or not there
            self._read()
            return self.path.open("a", encoding="utf-8")
        except OSError as e:
            raise OutputError(f"--out {self.out}: {e.strerror}; choose another folder") from e

    def _read(self) -> None:
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                entry = _entry(line)
                if number == 0 and (entry is None or entry.get("run") != self.identity):
                    raise OutputError(
                        f"--out {self.out}: holds the progress of another run (other pictures, bundle, prompts or "
                        f"options); choose another folder or delete {PROGRESS}"
                    )
                if entry is None:
                    break
                if "results" in entry:
                    self.done[entry["file_name"]] = entry["image_id"]
                whole += len(line)
        os.truncate(self.path, whole)

    def entries(self) -> Iterator[dict[str, Any]]:
        """The pictures' lines, in the order they were done."""
        with self.path.open("rb") as file:
            for line in file:
                entry = _entry(line)
                if entry is not None and "run" not in entry:
                    yield entry


def _entry(line: bytes) -> dict[str, Any] | None:
    """A whole line's object; None for one that was cut short."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and line.endswith(b"\n") else None


def write_line(file: IO[str], entry: Mapping[str, Any]) -> None:
    """One line, out of this process's hands when it returns."""
    file.write(json.dumps(entry) + "\n")  # ASCII: names need not be UTF-8
    file.flush()


def segment(
    predictor: Any,
    jobs: Sequence[Job],
    ledger: Ledger,
    *,
    mask_count: int = 3,
    propose: Callable[[Any], list[list[float]]] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, int]:
    """Segment every picture that is not done; results.json at the end. Returns how many prompts and pictures were done
    now, found done, and failed. A picture that cannot be read or whose prompts do not fit is noted and passed over, and
    is tried again by the next run.
    """
    tally = {"pictures": 0, "prompts": 0, "resumed": 0, "failed": 0}
    with ledger.open() as file:
        for job in _numbered(jobs, ledger.done):
            progress(job.name)
            if job.name in ledger.done:
                tally["resumed"] += 1
                continue
            try:
                results = _results(predictor, job, mask_count, propose)
            except (DataError, ImageError, PromptError) as e:
                write_line(file, {"file_name": job.name, "error": str(e)})
                tally["failed"] += 1
                continue
            write_line(file, {"file_name": job.name, "image_id": job.image_id, "results": results})
            tally["pictures"] += 1
            tally["prompts"] += len(results)
    _publish(ledger)
    return tally


def _numbered(jobs: Sequence[Job], done: Mapping[str, int]) -> Iterator[Job]:
    """The jobs; one that came in between two runs gets a number that no result has."""
    taken = set(done.values())
    free = max([*taken, *(job.image_id for job in jobs)], default=0) + 1
    for job in jobs:
        if job.name not in done and job.image_id in taken:
            yield replace(job, image_id=free)
            free += 1
        else:
            yield job


def _results(
    predictor: Any, job: Job, mask_count: int, propose: Callable[[Any], list[list[float]]] | None
) -> list[dict[str, Any]]:
    picture = read_image(job.path)
    prompts = job.prompts
    if prompts is None:
        assert propose is not None
        prompts = tuple(Prompt((), box) for box in propose(picture))
    for prompt in prompts:
        check_inside([p[:2] for p in prompt.points], [] if prompt.box is None else [prompt.box], picture.shape[:2])
    if not prompts:
        return []
    predictor.set_image(picture)
    return [_answer(predictor, job, prompt, mask_count) for prompt in prompts]


def _answer(predictor: Any, job: Job, prompt: Prompt, mask_count: int) -> dict[str, Any]:
    """One prompt's best mask as an entry of COCO's results."""
    masks, scores, _ = predictor.predict(
        point_coords=[p[:2] for p in prompt.points] or None,
        point_labels=[p[2] if len(p) == 3 else 1 for p in prompt.points] or None,
        box=prompt.box,
        num_multimask_outputs=mask_count,
    )
    best = int((-scores).argsort(kind="stable")[0])  # NaN comes last
    rle = mask_to_rle(masks[best])
    x0, y0, x1, y1 = (int(v) for v in mask_to_box(masks[best]))
    area = rle_area(rle)
    score = float(scores[best])
    return {
        "image_id": job.image_id,
        "file_name": job.name,
        "category_id": 1,
        "segmentation": rle_to_coco(rle),
        "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1] if area else [0, 0, 0, 0],
        "area": area,
        "score": score if np.isfinite(score) else 0.0,
        **prompt.extra,
    }


def _publish(ledger: Ledger) -> None:
    """results.json from the lines, entry by entry: no more than one picture's results are in memory."""
    partial = ledger.out / f".{RESULTS}.partial"
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write("[")
            separator = "\n"
            for entry in ledger.entries():
                for result in entry.get("results", ()):
                    file.write(separator + json.dumps(result, sort_keys=True))
                    separator = ",\n"
            file.write("\n]\n")
        partial.replace(ledger.out / RESULTS)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise OutputError(f"--out {ledger.out}: {e.strerror}; {PROGRESS} is kept, the same command goes on") from e
