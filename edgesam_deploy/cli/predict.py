"""run, everything: masks from a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesam_deploy.cli.console import JSON_HELP, print_json, progress_bar, stderr, stdout
from edgesam_deploy.errors import OutputError, PromptError

if TYPE_CHECKING:
    from edgesam_deploy.bundle import Bundle

Provider = Annotated[str, typer.Option(help="cpu, or cuda where onnxruntime has it.")]
Threads = Annotated[int, typer.Option(help="Threads of the runtime; 0: its own choice.", min=0)]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Json = Annotated[bool, typer.Option("--json", help=JSON_HELP)]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(no_args_is_help=True)(run)
    app.command(no_args_is_help=True)(everything)


def run(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    image: Annotated[Path, typer.Argument(help="A picture.")],
    out: Out,
    point: Annotated[
        list[str] | None,
        typer.Option(help="x,y[,label] in pixels; label 1 inside (default), 0 outside. Repeat for more."),
    ] = None,
    box: Annotated[str | None, typer.Option(help="x0,y0,x1,y1 in pixels.")] = None,
    masks: Annotated[int, typer.Option(help="3 alternatives, 1, or all 4.")] = 3,
    provider: Provider = "cpu",
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Segment what the prompts mean: mask PNGs, an overlay picture and result.json into OUT."""
    import numpy as np

    from edgesam_deploy.model.prompts import check_inside
    from edgesam_deploy.model.transforms import read_image
    from edgesam_deploy.overlay import overlay_masks, save_mask, save_picture
    from edgesam_deploy.runtime import open_predictor

    points = [_numbers("--point", text, (2, 3)) for text in point or []]
    corners = None if box is None else _numbers("--box", box, (4,))
    if not points and corners is None:
        raise PromptError("nothing to segment: give --point x,y or --box x0,y0,x1,y1")
    picture = read_image(image)
    check_inside([p[:2] for p in points], [] if corners is None else [corners], picture.shape[:2])
    predictor = open_predictor(bundle, provider, threads)
    prompt: dict[str, Any] = {"box": corners}
    if points:
        prompt["point_coords"] = [p[:2] for p in points]
        prompt["point_labels"] = [p[2] if len(p) == 3 else 1 for p in points]
    predictor.set_image(picture)
    found, scores, _ = predictor.predict(**prompt, num_multimask_outputs=masks)
    _note_weights(predictor.bundle)

    folder = _folder(out)
    names = [f"mask_{index}.png" for index in range(len(found))]
    for name, mask in zip(names, found, strict=True):
        save_mask(folder / name, mask)
    save_picture(folder / "overlay.png", overlay_masks(picture, found, scores, points, corners))
    best = int(np.argmax(scores))
    result = {
        "image": image.name,
        "masks": [
            {"file": name, "score": float(score), "area": int(mask.sum())}
            for name, mask, score in zip(names, found, scores, strict=True)
        ],
        "best": best,
        "overlay": "overlay.png",
        "weights": predictor.bundle.manifest["weights"],
    }
    _write_result(folder, result)
    if json:
        print_json(result)
        return
    console = stdout()
    for index, row in enumerate(result["masks"]):
        mark = "  best" if index == best else ""
        console.print(f"{folder / row['file']}  score {row['score']:.3f}  {row['area']} pixels{mark}")
    console.print(f"{folder / 'overlay.png'}")


def everything(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    image: Annotated[Path, typer.Argument(help="A picture.")],
    out: Out,
    points_per_side: Annotated[int, typer.Option(help="Side of the grid of points.", min=1)] = 32,
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
    from edgesam_deploy.model.mask_generator import SamAutomaticMaskGenerator
    from edgesam_deploy.model.transforms import read_image
    from edgesam_deploy.overlay import overlay_everything, save_picture
    from edgesam_deploy.runtime import open_predictor

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
    _note_weights(predictor.bundle)
    folder = _folder(out)
    result = {"image": image.name, "weights": predictor.bundle.manifest["weights"], "masks": records}
    _write_result(folder, result, "masks.json")
    save_picture(folder / "overlay.png", overlay_everything(picture, records))
    if json:
        print_json(result)
    else:
        stdout().print(f"{len(records)} masks\n{folder / 'masks.json'}\n{folder / 'overlay.png'}")


def _numbers(flag: str, text: str, counts: tuple[int, ...]) -> list[float]:
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError as e:
        raise PromptError(f"{flag} {text}: not numbers separated by commas") from e
    if len(numbers) not in counts:
        raise PromptError(f"{flag} {text}: expected {' or '.join(map(str, counts))} numbers, got {len(numbers)}")
    if not all(abs(n) < float("inf") for n in numbers):
        raise PromptError(f"{flag} {text}: holds NaN or infinity")
    return numbers


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"--out {out}: {e.strerror}") from e
    return out


def _write_result(folder: Path, result: dict[str, Any], name: str = "result.json") -> None:
    from edgesam_deploy.overlay import write_file

    from edgesam_deploy.bundle import dump_json  # isort: skip

    write_file(folder / name, dump_json(result).encode())


def _note_weights(bundle: Bundle) -> None:
    weights = bundle.manifest["weights"]
    if weights["source"] == "seeded":
        stderr().print(f"note: this bundle has random weights (seed {weights['seed']}); its masks mean nothing")
