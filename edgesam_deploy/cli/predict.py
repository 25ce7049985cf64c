"""run, everything: masks from a bundle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesam_deploy.cli.console import JSON_HELP, finite, note, print_json, progress_bar, readable_name, say
from edgesam_deploy.errors import PromptError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgesam_deploy.bundle import Bundle
    from edgesam_deploy.runtime import BundlePredictor

Provider = Annotated[str, typer.Option(help="cpu; openvino for onnx and npu bundles; cuda where onnxruntime has it.")]
Threads = Annotated[int, typer.Option(help="Threads of the runtime; 0: its own choice.", min=0)]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Json = Annotated[bool, typer.Option("--json", help=JSON_HELP)]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(no_args_is_help=True)(run)
    app.command(no_args_is_help=True)(everything)


def run(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    image: Annotated[Path, typer.Argument(help="A picture, or a folder of them.")],
    out: Out,
    point: Annotated[
        list[str] | None,
        typer.Option(help="x,y[,label] in pixels; label 1 inside (default), 0 outside. Repeat for more."),
    ] = None,
    box: Annotated[str | None, typer.Option(help="x0,y0,x1,y1 in pixels.")] = None,
    masks: Annotated[int | None, typer.Option(help="3 alternatives (default), 1, or all 4.")] = None,
    tiles: Annotated[
        bool | None,
        typer.Option("--tiles/--no-tiles", help="Semantic models: in tiles. Default: if larger than the model's side."),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Semantic models: pixels that tiles share. Default: a quarter of the side.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A folder's prompts as JSON: of our own layout, or COCO's annotations.")
    ] = None,
    boxes_from: Annotated[
        str | None, typer.Option(help="A detector that proposes boxes: regions, or a plug-in's name.")
    ] = None,
    provider: Provider = "cpu",
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Segment what the prompts mean: mask PNGs, an overlay picture and result.json into OUT.

    A semantic model (cwsam*) takes no prompts and gives every pixel a class: classes.png, confidence.png, overlay.

    A folder is segmented picture by picture, by the same prompts, by --prompts, or by --boxes-from: results.json into
    OUT, in COCO's results format. The same command goes on where it was stopped.
    """
    from edgesam_deploy.bundle import dump_json
    from edgesam_deploy.cli.many import Asked, run_many
    from edgesam_deploy.cli.results import OVERLAY, RESULT, check_results, mask_file, results
    from edgesam_deploy.cli.segment import run_segmenter
    from edgesam_deploy.model.prompts import check_inside
    from edgesam_deploy.model.transforms import read_image
    from edgesam_deploy.overlay import overlay_masks, png
    from edgesam_deploy.runtime import BundleSegmenter, is_semantic, open_artifact, open_predictor

    points = [_numbers("--point", text, "x,y[,label]", (2, 3)) for text in point or []]
    corners = None if box is None else _numbers("--box", box, "x0,y0,x1,y1", (4,))
    if masks not in (None, 1, 3, 4):
        raise UsageError(f"--masks {masks}: must be 1, 3 or 4")
    if image.is_dir() or prompts is not None or boxes_from is not None:
        if tiles is not None or overlap is not None:
            raise UsageError("--tiles and --overlap belong to one picture at a time")
        asked = Asked(bundle, image, out, points, corners, masks, prompts, boxes_from)
        run_many(asked, provider=provider, threads=threads, json=json)
        return
    check_results(out, image)
    picture = read_image(image)
    if is_semantic(bundle):
        if points or corners or masks is not None:
            raise PromptError(
                f"{bundle} holds a semantic model, which takes no prompts: leave --point, --box, --masks out"
            )
        if tiles is False and overlap is not None:
            raise UsageError(f"--overlap {overlap}: tiles overlap, and --no-tiles asks for none")
        segmenter = open_artifact(bundle, provider, threads)
        assert isinstance(segmenter, BundleSegmenter)
        run_segmenter(segmenter, segmenter.bundle, image, out, overlap=overlap, tiles=tiles, json=json)
        return
    if tiles is not None or overlap is not None:
        raise UsageError(f"--tiles and --overlap belong to semantic models; {bundle} holds a promptable one")
    if not points and corners is None:
        raise PromptError("nothing to segment: give --point x,y or --box x0,y0,x1,y1")
    check_inside([p[:2] for p in points], [] if corners is None else [corners], picture.shape[:2])
    predictor = open_predictor(bundle, provider, threads)
    predictor.set_image(picture)
    found, scores, _ = predictor.predict(
        point_coords=[p[:2] for p in points] or None,
        point_labels=[p[2] if len(p) == 3 else 1 for p in points] or None,
        box=corners,
        num_multimask_outputs=mask_count(predictor, masks),
    )
    remark = note_weights(predictor.bundle)

    result = {
        "image": readable_name(image),
        "size": [picture.shape[1], picture.shape[0]],
        "points": points,
        "box": corners,
        "weights": predictor.bundle.manifest["weights"],
        **_described(found, scores),
    }
    with results(out) as folder:
        for index, mask in enumerate(found):
            (folder / mask_file(index)).write_bytes(png(mask))
        (folder / OVERLAY).write_bytes(png(overlay_masks(picture, found, scores, points, corners, remark)))
        (folder / RESULT).write_text(dump_json(result), "utf-8")
    if json:
        print_json(result)
        return
    for index, (row, score) in enumerate(zip(result["masks"], scores, strict=True)):
        mark = "  best" if index == result["best"] else ""
        say(f"{out / row['file']}  score {score:.3f}  {row['area']} of {found[index].size} pixels{mark}")
    say(f"{out / OVERLAY}")


def _described(masks: NDArray[np.bool_], scores: NDArray[np.float32]) -> dict[str, Any]:
    """What result.json says of the masks."""
    from edgesam_deploy.cli.results import OVERLAY, mask_file

    rows = [
        {"file": mask_file(index), "score": float(score), "area": int(mask.sum())}
        for index, (mask, score) in enumerate(zip(masks, scores, strict=True))
    ]
    best = int((-scores).argsort(kind="stable")[0])  # NaN comes last
    described: dict[str, Any] = finite({"masks": rows, "best": best, "overlay": OVERLAY})
    return described


def mask_count(predictor: BundlePredictor, asked: int | None) -> int:
    """1 for an artifact that answers with one mask, else 3 unless asked otherwise."""
    single = predictor.interface.mask_count == 1
    if single and asked not in (None, 1):
        raise UsageError(f"--masks {asked}: this bundle gives one mask per prompt; leave it out")
    return asked or (1 if single else 3)


def everything(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    image: Annotated[Path, typer.Argument(help="A picture.")],
    out: Out,
    points_per_side: Annotated[int, typer.Option(help="Side of the grid of points.", min=1, max=1024)] = 32,
    pred_iou_thresh: Annotated[float, typer.Option(help="Drop masks scored at most this.")] = 0.88,
    stability_score_thresh: Annotated[float, typer.Option(help="Drop masks less stable than this.")] = 0.95,
    box_nms_thresh: Annotated[float, typer.Option(help="IoU of boxes above which the lower score goes.")] = 0.7,
    crop_n_layers: Annotated[int, typer.Option(help="Also segment crops, this many layers.", min=0)] = 0,
    min_mask_region_area: Annotated[int, typer.Option(help="Remove smaller holes and islands.", min=0)] = 0,
    provider: Provider = "cpu",
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Segment everything: masks.json (COCO run lengths, uncompressed) and an overlay picture into OUT."""
    from edgesam_deploy.bundle import dump_json
    from edgesam_deploy.cli.results import MASKS, OVERLAY, check_results, results
    from edgesam_deploy.model.mask_generator import SamAutomaticMaskGenerator
    from edgesam_deploy.model.transforms import read_image
    from edgesam_deploy.overlay import overlay_everything, png
    from edgesam_deploy.runtime import open_predictor

    for flag, value in (
        ("pred-iou", pred_iou_thresh),
        ("stability-score", stability_score_thresh),
        ("box-nms", box_nms_thresh),
    ):
        if not math.isfinite(value):
            raise UsageError(f"--{flag}-thresh {value}: must be a number")
    check_results(out, image)
    picture = read_image(image)
    predictor = open_predictor(bundle, provider, threads)
    generator = SamAutomaticMaskGenerator(
        predictor,
        points_per_side=points_per_side,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        box_nms_thresh=box_nms_thresh,
        crop_n_layers=crop_n_layers,
        min_mask_region_area=min_mask_region_area,
        output_mode="uncompressed_rle",
    )
    with progress_bar(20) as progress:
        shown = 0

        def report(done: int, total: int) -> None:
            nonlocal shown
            if done * 20 // total > shown:
                shown = done * 20 // total
                progress(f"prompt {done} of {total}")

        records = generator.generate(picture, progress=report)
    remark = note_weights(predictor.bundle)
    weights = predictor.bundle.manifest["weights"]
    result = {"image": readable_name(image), "weights": weights, "masks": records}
    with results(out) as folder:
        (folder / MASKS).write_text(dump_json(result), "utf-8")
        (folder / OVERLAY).write_bytes(png(overlay_everything(picture, records, remark)))
    if json:
        print_json(result)
    else:
        say(f"{len(records)} mask{'' if len(records) == 1 else 's'}\n{out / MASKS}\n{out / OVERLAY}")


def _numbers(flag: str, text: str, form: str, counts: tuple[int, ...]) -> list[float]:
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError as e:
        raise PromptError(f"{flag} {text}: not numbers separated by commas; give {form}") from e
    if len(numbers) not in counts:
        wanted = " or ".join(map(str, counts))
        raise PromptError(f"{flag} {text}: expected {wanted} numbers, got {len(numbers)}; give {form}")
    if not all(math.isfinite(n) for n in numbers):
        raise PromptError(f"{flag} {text}: holds NaN or infinity; give {form} in pixels")
    return numbers


def note_weights(bundle: Bundle) -> str:
    """Say on stderr that the weights are random, where they are; the remark for the picture."""
    weights = bundle.manifest["weights"]
    if weights["source"] != "seeded":
        return ""
    note(f"note: this bundle has random weights (seed {weights['seed']}); its masks mean nothing")
    return "random weights"
