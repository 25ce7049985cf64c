"""ops: what runs where, and why not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesam_deploy.cli import names
from edgesam_deploy.cli.console import JSON_HELP, note, print_json, stdout
from edgesam_deploy.errors import OutputError, UnsupportedOperators, UsageError

if TYPE_CHECKING:
    from edgesam_deploy.ops import OpsReport


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(no_args_is_help=True)(ops)


def ops(
    subject: Annotated[str, typer.Argument(help="An .onnx file, the folder of a bundle, or a model's name.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            autocompletion=names.report_targets,
            help="One or several, separated by commas or repeated, or all. Default: the bundle's own; else onnx.",
        ),
    ] = None,
    fail_on: Annotated[str | None, typer.Option(help="unsupported or partial: exit 5 where there is one.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")] = None,
    save_subgraph: Annotated[
        Path | None, typer.Option(help="Folder for an .onnx of each node that does not run, or is not known to.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Which operators a target runs, and why not. Offline.

    A model's name is captured and lowered as each target's build would, on random weights: operators do not depend on
    them.
    """  # fmt: skip
    from edgesam_deploy.ops import html_page, render

    if fail_on not in (None, "unsupported", "partial"):
        raise UsageError(f"--fail-on {fail_on}: must be unsupported or partial")
    asked = [name.strip() for text in target or [] for name in text.split(",")]
    files, remark = _files(subject), ""
    if files is None:
        remark = f"{subject}: captured with random weights; operators do not depend on them"
        reports = _of_model(subject, asked)
        note(remark)
        if save_subgraph is not None:
            raise UsageError("--save-subgraph needs a file or a bundle; build the model first")
    else:
        reports = _of_files(files, asked or [_own_target(Path(subject))])
    if html is not None:
        _write(html, html_page(reports, remark=remark))
    if save_subgraph is not None and files is not None:
        _save(files, reports, save_subgraph)
    if json:
        print_json({found.file: found.to_json() for found in reports})
    else:
        for found in reports:
            render(found, stdout())
    _gate(reports, fail_on)


def _files(subject: str) -> list[Path] | None:
    """The files to judge; None for a model's name. Raises UsageError, BundleError."""
    from edgesam_deploy.bundle import open_bundle
    from edgesam_deploy.model.configs import ALIASES, MODELS
    from edgesam_deploy.ops import READERS

    path = Path(subject)
    if path.suffix in READERS and path.exists():
        return [path]
    if path.is_dir():
        bundle = open_bundle(path)
        files = [bundle.path / entry["file"] for entry in bundle.manifest["parts"].values()]
        return list(dict.fromkeys(files))
    if path.exists():
        return [path]
    if subject in MODELS or subject in ALIASES:
        return None
    raise UsageError(f"{subject}: no such file; give an .onnx file or the folder of a bundle, or name a model")


def _own_target(subject: Path) -> str:
    """What a bundle was built for; ``onnx`` for a file, and for a bundle of a kind that has no rules."""
    from edgesam_deploy.bundle import open_bundle
    from edgesam_deploy.targets.rules import ALIASES, REPORTS

    if not subject.is_dir():
        return "onnx"
    bundle = open_bundle(subject)
    profile = bundle.manifest.get("options", {}).get("profile")
    return next((name for name in (profile, bundle.target) if name in REPORTS or name in ALIASES), "onnx")


def _of_files(files: list[Path], targets: list[str]) -> list[OpsReport]:
    from edgesam_deploy.ops import report

    return [report(path, targets) for path in files]


def _of_model(name: str, targets: list[str]) -> list[OpsReport]:
    from edgesam_deploy.model.registry import load
    from edgesam_deploy.ops.of_model import model_reports

    return model_reports(load(name, seed=0), targets or ["onnx"], lambda text: note(f"  {text}"))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror}") from e
    note(f"wrote {path}")


def _save(files: list[Path], reports: list[OpsReport], folder: Path) -> None:
    from edgesam_deploy.ops import save_subgraphs

    for path, found in zip(files, reports, strict=True):
        saved = save_subgraphs(path, found.failures("unsupported"), folder)
        note(f"{folder}: {len(saved.files)} nodes of {path.name}")
        if saved.left_out:
            note(f"left out, since the file does not say their types: {', '.join(saved.left_out)}")


def _gate(reports: list[OpsReport], fail_on: str | None) -> None:
    failures = [row for found in reports for row in (found.failures(fail_on) if fail_on else ())]  # type: ignore[arg-type]
    if failures:
        named = ", ".join(sorted({row.operator for row in failures}))
        raise UnsupportedOperators(f"{len(failures)} kinds of operators are not fully supported: {named}")
