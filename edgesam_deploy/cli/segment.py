"""What run does with a bundle that gives every pixel a class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from edgesam_deploy.bundle import dump_json
from edgesam_deploy.cli.console import finite, note, print_json, progress_bar, readable_name, say, stdout
from edgesam_deploy.cli.results import CLASSES, CONFIDENCE, OVERLAY, RESULT, check_results, results
from edgesam_deploy.model.semantic_classes import class_map_png, class_names, class_totals
from edgesam_deploy.model.transforms import read_image
from edgesam_deploy.overlay import overlay_classes, png

if TYPE_CHECKING:
    from edgesam_deploy.bundle import Bundle
    from edgesam_deploy.model.semantic import SemanticPredictor, SemanticResult

STEPS = 20  # of the progress bar


def run_segmenter(
    predictor: SemanticPredictor,
    bundle: Bundle,
    image_path: Path,
    out: Path,
    *,
    overlap: int | None = None,
    tiles: bool | None = None,
    json: bool = False,
) -> None:
    """Class map, its confidence, an overlay picture and result.json into ``out``; the table of classes on stdout.

    ``overlap`` and ``tiles`` as ``SemanticPredictor.predict`` takes them. Raises what it, ``read_image`` and
    ``results`` raise.
    """
    check_results(out, image_path)
    picture = read_image(image_path)
    with progress_bar(STEPS) as progress:
        shown = 0

        def report(done: int, total: int) -> None:
            nonlocal shown
            if done * STEPS // total > shown:
                shown = done * STEPS // total
                progress(f"tile {done} of {total}")

        found = predictor.predict(picture, tiles=tiles, overlap=overlap, progress=report)
    names = class_names(predictor.classes)
    weights = bundle.manifest["weights"]
    remark = "random weights" if weights["source"] == "seeded" else ""
    if remark:
        note(f"note: this bundle has random weights (seed {weights['seed']}); its classes mean nothing")
    result = {
        "image": readable_name(image_path),
        "size": [picture.shape[1], picture.shape[0]],
        "weights": weights,
        "tiles": [list(box) for box in found.tiles],
        "class_map": CLASSES,
        "confidence": None if found.confidence is None else CONFIDENCE,
        "overlay": OVERLAY,
        "classes": _described(found, names),
    }
    with results(out) as folder:
        (folder / CLASSES).write_bytes(class_map_png(found.class_map))
        if found.confidence is not None:
            (folder / CONFIDENCE).write_bytes(png(np.rint(found.confidence * 255).astype(np.uint8)))
        (folder / OVERLAY).write_bytes(png(overlay_classes(picture, found.class_map, names, remark)))
        (folder / RESULT).write_text(dump_json(result), "utf-8")
    if json:
        print_json(result)
        return
    stdout().print(_table(result["classes"]))
    for name in (CLASSES, result["confidence"], OVERLAY):
        if name:
            say(f"{out / name}")


def _described(found: SemanticResult, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """What result.json says of the classes that occur, the largest first."""
    pixels = class_totals(found.class_map, len(names))
    sums = None if found.confidence is None else class_totals(found.class_map, len(names), found.confidence)
    rows = [
        {
            "index": int(index),
            "name": names[index],
            "pixels": int(pixels[index]),
            "share": pixels[index] / found.class_map.size,
            "mean_confidence": None if sums is None else sums[index] / pixels[index],
        }
        for index in np.argsort(-pixels, kind="stable")
        if pixels[index]
    ]
    described: list[dict[str, Any]] = finite(rows)
    return described


def _table(classes: list[dict[str, Any]]) -> Table:
    table = Table("", "class", "share", "pixels", "mean confidence")
    for row in classes:
        sure = "" if row["mean_confidence"] is None else f"{row['mean_confidence']:.3f}"
        table.add_row(str(row["index"]), row["name"], f"{100 * row['share']:.2f} %", str(row["pixels"]), sure)
    return table
