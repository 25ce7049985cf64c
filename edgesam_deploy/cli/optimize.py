"""optimize: a target's ONNX-level passes on any ONNX file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesam_deploy.cli import names
from edgesam_deploy.cli.build import Proof
from edgesam_deploy.cli.console import JSON_HELP, note, print_json, progress_bar, say, stdout
from edgesam_deploy.errors import UsageError

if TYPE_CHECKING:
    from edgesam_deploy.optimizer import Optimized


class Int64(StrEnum):
    """What becomes of 64-bit integers."""

    keep = "keep"
    narrow = "narrow"
    force = "force"


class Precision(StrEnum):
    """Types that a graph's values can be given."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(no_args_is_help=True)(optimize)


def optimize(
    file: Annotated[Path, typer.Argument(help="An .onnx file, whoever exported it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .onnx file to write.")],
    target: Annotated[
        str,
        typer.Option("--target", "-t", help="Target name, see: edgesam-deploy targets", autocompletion=names.targets),
    ] = "onnx",
    points: Annotated[int | None, typer.Option(help="Freeze the number of points of a decoder.")] = None,
    dim: Annotated[
        list[str] | None, typer.Option(help="NAME=SIZE: freeze another dynamic dimension. May be repeated.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Write in this opset, 11 to 23. Default: the target's.")] = None,
    int64: Annotated[
        Int64 | None,
        typer.Option(
            help="keep, narrow: int32 wherever ONNX allows, force: int32 everywhere, not standard ONNX. "
            "Default: the target's."
        ),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="tensorrt: the type written into the graph; norms, sums, positions: fp32.")
    ] = None,
    proof: Annotated[Proof, typer.Option(help="How each pass is proved: on two inputs, on four, or not.")] = Proof.fast,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT where it is there already.")] = False,
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Clean up any ONNX file for a target: fold, fuse, freeze; every pass proved on random inputs.

    Made for what other exporters leave: shape arithmetic, OneHot, Expand, GELU and LayerNorm in pieces.
    """
    from edgesam_deploy import optimizer

    dims = dict(_dimension(text) for text in dim or [])
    wide: Any = None if int64 is None else int64.value
    kind: Any = None if precision is None else precision.value
    with progress_bar(len(optimizer.legalization(target, kind)) + 5) as progress:
        found = optimizer.optimize(
            file, out, target, points=points, dims=dims, int64=wide, opset=opset, precision=kind,
            proof=proof.value, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if json:
        print_json(found.to_json())
        return
    _print(found)
    if not found.standard:
        note(f"{out} is not standard ONNX: its integers were forced to int32 after the proof; no runtime here loads it")


def _dimension(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name or not size.isdecimal():
        raise UsageError(f"--dim {text}: expected NAME=SIZE, such as batch=1")
    return name, int(size)


def _print(found: Optimized) -> None:
    from rich.table import Table

    table = Table("pass", "sites", "nodes", "relative L2", "s")
    for step in found.steps:
        if step.sites:
            error = "not proved" if step.error is None else f"{step.error:.1e}"
            nodes = f"{step.operators_before} -> {step.operators_after}"
            table.add_row(step.name, str(step.sites), nodes, error, f"{step.seconds:.2f}")
    stdout().print(table)
    say(f"{found.out}: {found.nodes} nodes instead of {found.nodes_before}, opset {found.opset}")
