"""eval: how good the masks of a model or an artifact are."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesam_deploy.cli.console import note, print_json, progress_bar, say, stdout
from edgesam_deploy.cli.data import Json, Layout
from edgesam_deploy.errors import UsageError

if TYPE_CHECKING:
    from edgesam_deploy.distill.data import Source
    from edgesam_deploy.distill.evaluate import Result
    from edgesam_deploy.model.base_predictor import PromptPredictor

WORST = 6  # pictures


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(name="eval", no_args_is_help=True)(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(help="A model name, or the folder of a bundle.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of the data set.")],
    checkpoint: Annotated[str | None, typer.Option(help="Weights of the model: a file, or a name of fetch.")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON file with sizes that have no name.")] = None,
    layout: Layout = "sa1b",
    split: Annotated[str, typer.Option(help="Which part of the data set.")] = "val",
    prompts: Annotated[str, typer.Option(help="box or point.")] = "box",
    point_from: Annotated[str, typer.Option(help="data, mask-random, mask-center or box-center.")] = "mask-center",
    refine: Annotated[int, typer.Option(min=1, max=32, help="Decodings, each with one more point.")] = 1,
    multimask: Annotated[int, typer.Option(help="Masks per prompt: 1, 3 or 4.")] = 1,
    select: Annotated[str, typer.Option(help="Of several: score, stability, area or oracle.")] = "score",
    max_prompts: Annotated[int, typer.Option(min=1, help="Objects per picture.")] = 64,
    samples: Annotated[int | None, typer.Option(min=1, help="At most so many pictures.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random points.")] = 0,
    protocol: Annotated[
        str, typer.Option(help="exact, or reference: EdgeSAM's own, its grown masks included.")
    ] = "exact",
    boxes: Annotated[
        Path | None, typer.Option(help="COCO results of a detector: COCO's mask AP by these boxes.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for eval.json and the worst masks.")] = None,
    json: Json = False,
) -> None:
    """Mean IoU and boundary IoU by box or point prompts on a data set; with --boxes, COCO's mask AP."""
    from typing import get_args

    from edgesam_deploy.distill import evaluate as room
    from edgesam_deploy.distill.data import open_source

    for flag, value, allowed in (
        ("--prompts", prompts, ("box", "point")),
        ("--point-from", point_from, get_args(room.PointFrom)),
        ("--select", select, get_args(room.Select)),
        ("--protocol", protocol, ("exact", "reference")),
        ("--multimask", multimask, (1, 3, 4)),
    ):
        if value not in allowed:
            raise UsageError(f"{flag} {value}: must be one of {', '.join(map(str, allowed))}")
    chosen: Any = (prompts, point_from, refine, multimask, select, max_prompts, samples, seed, protocol)
    asked = room.Protocol(*chosen)
    if boxes is not None and asked != room.Protocol():
        raise UsageError(
            "--boxes: the boxes are the prompts, of all pictures; leave the options of other protocols out"
        )
    source = open_source(layout, data, split)
    predictor, what = _predictor(model, checkpoint, config)
    if boxes is not None:
        precision: dict[str, Any] = {"model": what, "boxes": str(boxes), **_average_precision(predictor, source, boxes)}
        if out is not None:
            _write_json(out, precision)
        if json:
            print_json(precision)
        else:
            for name, value in precision.items():
                say(f"{name:10} {value:.4f}" if isinstance(value, float) else f"{name:10} {value}")
        return
    total = len(source) if samples is None else min(samples, len(source))
    with progress_bar(total, lines=10) as progress:
        result = room.evaluate(predictor, source, asked, progress)
    found = {"model": what, **result.as_json()}
    if out is not None:
        _write(out, found, result, source)
    print_json(found) if json else _print(what, result)


def _predictor(model: str, checkpoint: str | None, config: Path | None) -> tuple[PromptPredictor, str]:
    """What answers, and what to call it."""
    if Path(model).is_dir():
        from edgesam_deploy.runtime import open_predictor

        if checkpoint or config:
            raise UsageError(f"{model} is a bundle, which has its weights: leave --checkpoint and --config out")
        return open_predictor(model), model
    from edgesam_deploy.cli.options import config_changes
    from edgesam_deploy.model.predictor import SamPredictor
    from edgesam_deploy.model.registry import load
    from edgesam_deploy.model.sam import Sam

    loaded = load(model, checkpoint, config=config_changes(config, None))
    if not isinstance(loaded, Sam) or not loaded.promptable:
        raise UsageError(f"{model}: takes no prompts; eval measures promptable models")
    if checkpoint is None:
        note(f"{model}: {loaded.weights}")
    return SamPredictor(loaded), f"{model}, {loaded.weights}"


def _print(what: str, result: Result) -> None:
    from rich.table import Table

    asked = result.protocol
    title = f"{what}: {result.masks} masks of {result.pictures} pictures, {asked.prompts} prompts, {asked.protocol}"
    table = Table("decoding", "mIoU", "boundary mIoU", "mIoU by picture", title=title)
    for step, row in enumerate(zip(result.miou, result.boundary_miou, result.miou_by_picture, strict=True), 1):
        table.add_row(str(step), *(f"{value:.4f}" for value in row))
    stdout().print(table)
    for name, problem in result.broken.items():
        note(f"left out: {name}: {problem}")


def _average_precision(predictor: PromptPredictor, source: Source, boxes: Path) -> dict[str, float]:
    from edgesam_deploy.distill.data.coco import CocoSource
    from edgesam_deploy.distill.evaluate import average_precision

    if not isinstance(source, CocoSource):
        raise UsageError("--boxes: needs --layout coco, lvis or lvis_cocofied")
    try:
        detections = json_format.loads(boxes.read_text())
    except (OSError, ValueError) as e:
        raise UsageError(f"--boxes {boxes}: not readable as JSON: {e}") from e
    with progress_bar(len(source.all_ids), lines=10) as progress:
        return average_precision(predictor, source, detections, progress)


def _write_json(out: Path, found: dict[str, Any]) -> None:
    from edgesam_deploy.bundle import dump_json
    from edgesam_deploy.cli.console import finite
    from edgesam_deploy.errors import OutputError

    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "eval.json").write_text(dump_json(finite(found)))
    except OSError as e:
        raise OutputError(f"--out {out}: {e.strerror}; choose another folder") from e


def _write(out: Path, found: dict[str, Any], result: Result, source: Source) -> None:
    """eval.json, and the worst masks as pictures: the answer beside what is right."""
    import numpy as np

    from edgesam_deploy.errors import OutputError
    from edgesam_deploy.model.masks import rle_to_mask
    from edgesam_deploy.overlay import overlay_masks, png

    _write_json(out, found)
    try:
        for rank, case in enumerate(result.worst(WORST)):
            read = source.read(source.names.index(case.name), masks=True)
            assert read.masks is not None
            points = [] if case.point is None else [case.point]
            box = case.box if result.protocol.prompts == "box" else None
            panels = [
                overlay_masks(read.image, mask[None], [score], points, box, remark)
                for mask, score, remark in (
                    (rle_to_mask(case.answer), case.iou, "answered; the score is its IoU"),
                    (read.masks[case.number], 1.0, "right"),
                )
            ]
            picture = np.concatenate(panels, axis=1)
            (out / f"worst_{rank}_{Path(case.name).name}_{case.number}.png").write_bytes(png(picture))
    except OSError as e:
        raise OutputError(f"cannot write to {out}: {e.strerror}") from e
