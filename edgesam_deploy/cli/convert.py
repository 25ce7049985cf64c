"""convert: checkpoints between the stages of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgesam_deploy.cli.console import JSON_HELP, print_json, say
from edgesam_deploy.errors import OutputError, UsageError

Json = Annotated[bool, typer.Option("--json", help=JSON_HELP)]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(no_args_is_help=True)(convert)


def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint, or a name of: edgesam-deploy fetch.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .safetensors, or .pth.")],
    decoder: Annotated[
        str | None,
        typer.Option(help="SAM's checkpoint, whose prompt encoder and mask decoder join the image encoder of SOURCE."),
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Write this part alone: image_encoder, prompt_encoder or mask_decoder.")
    ] = None,
    bare: Annotated[bool, typer.Option("--bare", help="Names without the part's own, as its train.py asks.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Store in float16.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    json: Json = False,
) -> None:
    """Join a phase-1 encoder with SAM's decoder, take a part out, merge LoRA pairs, store in float16."""
    if bare and part is None:
        raise UsageError("--bare is for one part: name it with --part")
    if part is not None and decoder is not None:
        raise UsageError("--part takes a model apart, --decoder puts one together; choose one")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; give --overwrite to replace it")
    from edgesam_deploy.distill.convert import extracted, halved, joined, merged_lora, write_weights
    from edgesam_deploy.model.checkpoint import read_checkpoint
    from edgesam_deploy.model.fetch import resolve
    from edgesam_deploy.model.layouts import recognise

    file = read_checkpoint(resolve(source))
    tensors = merged_lora(file.tensors)
    about = f"from {file.source.name}"
    if decoder is not None:
        rest = read_checkpoint(resolve(decoder))
        tensors = joined(tensors, merged_lora(rest.tensors))
        about += f", decoder from {rest.source.name}"
    if part is not None:
        tensors = extracted(tensors, part, bare=bare)
    write_weights(out, halved(tensors) if half else tensors, about)
    found = recognise(tensors)
    made = {"file": str(out), "tensors": len(tensors), "model": found.model, "note": found.note}
    if json:
        print_json(made)
    else:
        say(f"{out}: {len(tensors)} tensors, {found.model or found.note}")
