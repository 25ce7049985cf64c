"""build, check, verify: from a checkpoint to a proven bundle."""

from __future__ import annotations

from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from edgesam_deploy.cli.console import JSON_HELP, note, print_json, progress_bar, readable_name, say, stdout
from edgesam_deploy.cli.options import (
    Checkpoint,
    Config,
    ImageSize,
    Model,
    Seed,
    TargetName,
    config_changes,
    with_target_options,
)
from edgesam_deploy.errors import ParityError, UnknownName, UsageError


class Proof(StrEnum):
    """How each pass is checked."""

    off = "off"
    fast = "fast"
    full = "full"


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(no_args_is_help=True)(with_target_options(build))
    app.command(no_args_is_help=True)(check)
    app.command(no_args_is_help=True)(verify)


def build(
    model: Model,
    target: TargetName = "onnx",
    checkpoint: Checkpoint = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder. Default out/MODEL/TARGET.")] = None,
    image_size: ImageSize = None,
    config: Config = None,
    upsample: Annotated[
        str | None,
        typer.Option(
            help="How an EdgeSAM's neck enlarges: bicubic (as trained, the default) or bilinear (as old exporters)."
        ),
    ] = None,
    gelu: Annotated[str | None, typer.Option(help="erf or tanh instead of the model's own.")] = None,
    proof: Annotated[Proof, typer.Option(help="How each pass is proved: on two inputs, on four, or not.")] = Proof.fast,
    dump_after: Annotated[str | None, typer.Option(help="Write each part after this pass, beside OUT.")] = None,
    max_memory: Annotated[
        float | None, typer.Option(help="GiB: refuse what is estimated to take more. Default: what is available.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail also where parity could not be verified.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and stop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there already.")] = False,
    quantize: Annotated[
        str, typer.Option(help="all, or auto: keep the fewest layers in higher precision that reach --min-iou.")
    ] = "all",
    min_iou: Annotated[
        float | None, typer.Option(help="With --quantize auto: the worst mask on unseen pictures. Default 0.98.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
    options: dict[str, Any] | None = None,
) -> None:
    """Build a model for a target: trace, rewrite, prove, emit, check against PyTorch.

    Writes a bundle: the artifact, manifest with hashes, operator report, parity, timings, model card.
    """
    from edgesam_deploy.bundle import check_output
    from edgesam_deploy.model.configs import ALIASES, model_config
    from edgesam_deploy.model.fetch import SOURCES, resolve
    from edgesam_deploy.targets import make_target

    model_config(model)  # wrong names fail before PyTorch is loaded
    changes = config_changes(config, image_size)
    chosen = make_target(target, **(options or {}))
    if checkpoint is not None and seed is not None:
        raise UsageError("--seed is for random weights; leave it out with --checkpoint")
    if checkpoint is not None and checkpoint not in SOURCES:
        resolve(checkpoint)
    if quantize not in ("all", "auto"):
        raise UsageError(f"--quantize {quantize}: must be all or auto")
    if min_iou is not None and quantize == "all":
        raise UsageError("--min-iou is for --quantize auto; leave it out, or add that")
    folder = out if out is not None else Path("out") / ALIASES.get(model, model) / chosen.name
    check_output(folder, overwrite=overwrite)

    from edgesam_deploy.builder import build as build_bundle
    from edgesam_deploy.builder import plan
    from edgesam_deploy.memory import GIB, build_bytes, check_memory
    from edgesam_deploy.model.registry import configured, load
    from edgesam_deploy.model.sam import Sam
    from edgesam_deploy.report import print_build, print_plan

    cfg = configured(model, upsample=upsample, gelu=gelu, config=changes)
    steps = plan(cfg, chosen)
    passes = {step.name for step in chosen.pipeline(cfg)}
    if dump_after is not None and dump_after not in passes:
        raise UnknownName("pass", dump_after, passes)
    if max_memory is not None and not (isfinite(max_memory) and max_memory > 0):
        raise UsageError(f"--max-memory {max_memory}: must be a number of GiB above 0")
    if quantize == "auto":
        from edgesam_deploy.quantizer import DEFAULT_IOU, check_searchable

        min_iou = DEFAULT_IOU if min_iou is None else min_iou
        check_searchable(model, cfg, chosen, min_iou)
    if dry_run:
        print_json(steps) if json else print_plan(stdout(), model, chosen, folder, steps, build_bytes(cfg)[1])
        return
    limit = None if max_memory is None else int(max_memory * GIB)
    if checkpoint is None:  # before gigabytes are drawn; a file tells its sizes only when it is read
        check_memory(cfg, model, limit=limit)
    note(f"building {model} for {chosen.name} into {folder}")
    with progress_bar(len(steps)) as progress:
        progress("load")
        loaded = load(model, checkpoint, seed=seed, upsample=upsample, gelu=gelu, config=changes)
        if min_iou is not None:
            from edgesam_deploy.quantizer import quantize as build_quantized

            assert isinstance(loaded, Sam)
            bundle = build_quantized(
                loaded, chosen, folder, min_iou=min_iou, overwrite=overwrite, progress=progress, proof=proof.value,
                dump_after=dump_after, strict=strict, max_memory=limit,
            )  # fmt: skip
        else:
            bundle = build_bundle(
                loaded, chosen, folder, proof=proof.value, dump_after=dump_after, strict=strict, overwrite=overwrite,
                max_memory=limit, progress=progress,
            )  # fmt: skip
    if json:
        print_json({
            "bundle": str(bundle.path), "manifest": dict(bundle.manifest),
            "parity": bundle.read_json("parity.json"), "timings": bundle.read_json("timings.json"),
        })  # fmt: skip
    else:
        print_build(stdout(), bundle)


def check(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    checkpoint: Annotated[str | None, typer.Option(help="The checkpoint it was built from.")] = None,
    images: Annotated[Path | None, typer.Option(help="Your own pictures instead of the shipped ones.")] = None,
    provider: Annotated[
        str, typer.Option(help="cpu; openvino for onnx and npu bundles; cuda where onnxruntime has it.")
    ] = "cpu",
    full: Annotated[
        bool, typer.Option("--full", help="Every picture and prompt also where a run takes minutes (qnn).")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail also where parity could not be verified.")] = False,
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Measure a bundle against PyTorch again, on the shipped photographs or on yours."""
    from edgesam_deploy.bundle import open_bundle
    from edgesam_deploy.parity import check as check_bundle
    from edgesam_deploy.precision.quantisation import after_check
    from edgesam_deploy.report import print_parity

    pictures = None if images is None else _pictures(images)
    with progress_bar(8 if pictures is None else len(pictures) + 3) as progress:
        parity = check_bundle(
            bundle, checkpoint=checkpoint, pictures=pictures, provider=provider, full=full, progress=progress
        )
    if json:
        print_json(parity.to_json())
    else:
        print_parity(stdout(), parity.to_json())
    after_check(open_bundle(bundle), parity.to_json())
    if parity.verdict == "fail" or (strict and parity.verdict != "pass"):
        raise ParityError(f"parity: {parity.verdict}; {parity.reasons[0]}")


def _pictures(folder: Path) -> dict[str, Any]:
    from edgesam_deploy.errors import ImageError
    from edgesam_deploy.model.transforms import read_image

    if not folder.is_dir():
        raise UsageError(f"--images {folder}: not a folder")
    pictures = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            pictures[readable_name(path)] = read_image(path)
        except ImageError as e:
            note(f"left out: {e}")
    if not pictures:
        raise UsageError(f"--images {folder}: no picture in it could be read")
    return pictures


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Re-hash a bundle: is every file the one that was built?"""
    from edgesam_deploy.bundle import verify as verify_bundle

    found = verify_bundle(bundle)
    if json:
        print_json({"bundle": str(bundle), "verified": True, "files": found.manifest["files"]})
    else:
        say(f"{bundle}: {len(found.manifest['files'])} files match their manifest")
