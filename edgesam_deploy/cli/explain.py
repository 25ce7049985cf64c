"""explain-file: whose export an .onnx file is, and what to use instead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from edgesam_deploy.cli.console import JSON_HELP, print_json, say, stdout

if TYPE_CHECKING:
    from edgesam_deploy.explain import Explanation


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(no_args_is_help=True)(explain_file)


def explain_file(
    file: Annotated[Path, typer.Argument(help="An .onnx file that any script wrote.")],
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Say whose export a file is, what it does otherwise than its checkpoint's predictor, and how to replace it.

    Recognised are the exports of EdgeSAM, its fork for NPUs, EdgeSAM-DyT, SAM and HQ-SAM, by their interface and
    operators. Weights are not read: this tells what the script does, not whether this file's numbers are right.
    """
    from edgesam_deploy.explain import explain

    found = explain(file)
    if json:
        print_json(found.to_json())
    else:
        _show(found)


def _show(found: Explanation) -> None:
    export = found.export
    if export is None:
        inputs, outputs = (", ".join(values) for values in (found.facts.inputs, found.facts.outputs))
        say(f"{found.file}: no export that is known here (inputs {inputs}; outputs {outputs})")
        say("edgesam-deploy ops FILE tells what runs it; edgesam-deploy optimize rewrites it")
        return
    say(f"{found.file}: {export.part} of {export.family}\nwritten by: {export.script}")
    say("\nrecognised by")
    for text in export.evidence:
        say(f"  {text}")
    if export.differences:
        table = Table("", "this file", "the checkpoint's predictor", "what follows", title="what differs")
        for row in export.differences:
            table.add_row(row.topic, row.here, row.predictor, row.effect, end_section=True)
        stdout().print(table)
    say("as the predictor has it" if export.differences else "")
    for text in export.same:
        say(f"  {text}")
    say("\nto replace it")
    for text in export.replace:
        say(f"  {text}")
