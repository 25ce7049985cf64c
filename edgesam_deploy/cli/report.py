"""report: one page about what was built."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from edgesam_deploy.cli.console import progress_bar, say
from edgesam_deploy.errors import OutputError


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(no_args_is_help=True)(report)


def report(
    bundle: Annotated[list[Path], typer.Argument(help="Folders of bundles.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The HTML file. Default: report.html in the first bundle.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The weights a bundle was built from, for the pictures of its masks.")
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Run model and artifact once, and show their masks.")
    ] = True,
) -> None:
    """One HTML file about bundles: built from what, proved how, how right, how fast, and what was not verified.

    It holds all that it shows: no network, no other file, no JavaScript needed. It reads what build, check and bench
    left in the bundles.
    """
    from edgesam_deploy.bundle import open_bundle
    from edgesam_deploy.report.page import report_page
    from edgesam_deploy.report.pictures import Panels, parity_panels

    opened = [open_bundle(path) for path in bundle]
    panels: list[Panels | str] = []
    with progress_bar(len(opened) + 1) as progress:
        for one in opened:
            progress(f"pictures: {one.path}")
            panels.append(parity_panels(one, checkpoint) if pictures else "they were not asked for")
        progress("page")
        page = report_page(opened, panels)
    path = out or opened[0].path / "report.html"
    _write(path, page)
    say(str(path))


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {e.strerror}") from e
