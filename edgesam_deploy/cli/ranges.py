"""ranges: what every tensor of a model reaches, and what fp16 may break."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesam_deploy.cli import names
from edgesam_deploy.cli.console import JSON_HELP, note, print_json, progress_bar, say, stdout
from edgesam_deploy.cli.options import Checkpoint, Config, ImageSize, Model, Seed, config_changes
from edgesam_deploy.errors import OutputError, UsageError

if TYPE_CHECKING:
    from edgesam_deploy.precision.ranges import Ranges

SHOWN = 30  # candidates; --json and the file have them all


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(no_args_is_help=True)(ranges)


def ranges(
    model: Model,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Look behind this target's aten passes.", autocompletion=names.targets),
    ] = None,
    checkpoint: Checkpoint = None,
    seed: Seed = None,
    images: Annotated[Path | None, typer.Option(help="Your own pictures instead of the shipped ones.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Keep all figures in this JSON file, for casting and quantising.")
    ] = None,
    image_size: ImageSize = None,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Observe every tensor of a model over pictures and prompts, and name what fp16 may break.

    Nothing is emulated here: figures are fp32's. Building for a target that computes in fp16 emulates it.
    """
    from edgesam_deploy.cli.build import _pictures
    from edgesam_deploy.model.configs import model_config
    from edgesam_deploy.targets import make_target

    model_config(model)  # wrong names fail before PyTorch is loaded
    changes = config_changes(config, image_size)
    chosen = None if target is None else make_target(target)
    if checkpoint is not None and seed is not None:
        raise UsageError("--seed is for random weights; leave it out with --checkpoint")
    if out is not None:
        _check_out(out)
    pictures = None if images is None else _pictures(images)

    from edgesam_deploy.memory import check_memory
    from edgesam_deploy.model.registry import configured, load
    from edgesam_deploy.precision.analyse import ranges as analyse

    if checkpoint is None:  # before gigabytes are drawn; a file tells its sizes only when it is read
        check_memory(configured(model, config=changes), model)
    with progress_bar(5 if pictures is None else len(pictures) + 1) as progress:
        loaded = load(model, checkpoint, seed=seed, config=changes)
        found = analyse(loaded, chosen, pictures=pictures, progress=progress)
    if out is not None:
        found.write(out)
        note(f"all figures are in {out}")
    if json:
        print_json({**found.to_json(), "candidates": [_row(c) for c in found.candidates()]})
    else:
        _print(found)


def _check_out(out: Path) -> None:
    """Before minutes are spent on what could not be kept."""
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder; name a file")
    nearest = next(folder for folder in out.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise OutputError(f"--out {out}: {nearest} is not a folder; name another place")


def _row(candidate: object) -> dict[str, object]:
    from edgesam_deploy.precision.ranges import Candidate

    assert isinstance(candidate, Candidate)
    return {"part": candidate.part, "tensor": candidate.tensor.name, "kind": candidate.kind, "why": candidate.why}


def _print(found: Ranges) -> None:
    from rich.table import Table

    tensors = sum(len(rows) for rows in found.parts.values())
    prompts = f" and {len(found.cases)} prompts" if found.cases else ""
    say(f"{found.model}, {found.weights[:12]}: {tensors} tensors over {len(found.pictures)} pictures{prompts}")
    for part, rows in found.parts.items():
        values = [row for row in rows if row.role != "weight"]
        top = max(values, key=lambda row: row.largest)
        say(f"{part}: the largest value is {top.largest:.4g}, {top.margin:.3g} times below fp16's end, at {top.title}")
    candidates = found.candidates()
    if not candidates:
        say("no candidates for overflow, underflow or absorbed error in fp16")
        return
    table = Table("candidate for", "part", "where", "why")
    for candidate in candidates[:SHOWN]:
        table.add_row(candidate.kind, candidate.part, candidate.tensor.title, candidate.why)
    stdout().print(table)
    if len(candidates) > SHOWN:
        say(f"and {len(candidates) - SHOWN} more; --json lists them all")
