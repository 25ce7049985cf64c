"""ops: what runs where, and why not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesam_deploy.cli import names
from edgesam_deploy.cli.console import JSON_HELP, note, print_json, stdout
from edgesam_deploy.errors import OutputError, UnsupportedOperators, UsageError

if TYPE_CHECKING:
    from edgesam_deploy.ops import OpsReport, PlanReport

OWN = {".tflite": "tflite", ".mlpackage": "coreml"}  # who runs a file, by the end of its name


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(no_args_is_help=True)(ops)


def ops(
    subject: Annotated[
        str, typer.Argument(help="An .onnx, .tflite or .mlpackage, the folder of a bundle, or a model's name.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            autocompletion=names.report_targets,
            help="One or several, separated by commas or repeated, or all. Default: the bundle's or file's own.",
        ),
    ] = None,
    fail_on: Annotated[str | None, typer.Option(help="unsupported or partial: exit 5 where there is one.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")] = None,
    save_subgraph: Annotated[
        Path | None, typer.Option(help="Folder for an .onnx of each node that does not run, or is not known to.")
    ] = None,
    compute_plan: Annotated[
        Path | None,
        typer.Option(help="JSON of Core ML's own compute plan, made on a Mac: shown beside the estimate."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Which operators a target runs, and why not. Offline.

    A model's name is captured and lowered as each target's build would, on random weights: operators do not depend on
    them.
    """  # fmt: skip
    from edgesam_deploy.ops import html_page, render, render_plan

    if fail_on not in (None, "unsupported", "partial"):
        raise UsageError(f"--fail-on {fail_on}: must be unsupported or partial")
    asked = [name.strip() for text in target or [] for name in text.split(",")]
    files, remark = _files(subject), ""
    if files is None:
        remark = f"{subject}: captured with random weights; operators do not depend on them"
        reports = _of_model(subject, asked)
        note(remark)
        if save_subgraph is not None or compute_plan is not None:
            raise UsageError("--save-subgraph and --compute-plan need a file or a bundle; build the model first")
    else:
        reports = _of_files(files, asked or _own_targets(Path(subject)))
    plans = {} if compute_plan is None else _plans(files or [], reports, compute_plan)
    if html is not None:
        _write(html, html_page(reports, remark=remark))
    if save_subgraph is not None and files is not None:
        _save(files, reports, save_subgraph)
    if json:
        planned = {file: {"compute_plan": plan.to_json()} for file, plan in plans.items()}
        print_json({found.file: {**found.to_json(), **planned.get(found.file, {})} for found in reports})
    else:
        for found in reports:
            render(found, stdout())
        for plan in plans.values():
            render_plan(plan, stdout())
    _gate(reports, fail_on, asked or [_own_target(Path(subject))])


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
    kinds = ", ".join(READERS)
    raise UsageError(f"{subject}: no such file; give one of {kinds}, the folder of a bundle, or the name of a model")


def _own_target(subject: Path) -> str:
    """What a bundle was built for, or what runs a file of its kind; ``onnx`` where that has no rules."""
    from edgesam_deploy.bundle import open_bundle
    from edgesam_deploy.targets.rules import ALIASES, report_names

    if subject.suffix in OWN or not subject.is_dir():
        return OWN.get(subject.suffix, "onnx")
    bundle = open_bundle(subject)
    options = bundle.manifest.get("options", {})
    names = (options.get("profile"), f"{bundle.target}{options.get('trt', '')}", bundle.target)
    return next((name for name in names if name in report_names() or name in ALIASES), "onnx")


def _own_targets(subject: Path) -> list[str]:
    """What a subject is judged by unless asked: Core ML's files also by the Neural Engines."""
    from edgesam_deploy.targets.rules import REPORTS

    own = _own_target(subject)
    return [own, *(name for name in REPORTS if own == "coreml" and name.startswith("coreml-ane"))]


def _plans(files: list[Path], reports: list[OpsReport], path: Path) -> dict[str, PlanReport]:
    """The plan's answer for each package that it speaks of."""
    from edgesam_deploy.ops import plan_report, read_plan

    plan = read_plan(path)
    packages = [file.name for file in files if file.suffix == ".mlpackage"]
    known = [name for name in packages if name in plan.packages]
    if not known:
        raise UsageError(f"--compute-plan {path} speaks of {', '.join(plan.packages)}; judged are {_named(files)}")
    return {found.file: plan_report(plan, found.file, found.placements) for found in reports if found.file in known}


def _named(files: list[Path]) -> str:
    return ", ".join(file.name for file in files)


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

    other = [path for path in files if path.suffix in OWN]
    if other:
        raise UsageError(f"--save-subgraph cuts nodes out of ONNX files; {_named(other)} is none")
    for path, found in zip(files, reports, strict=True):
        saved = save_subgraphs(path, found.failures("unsupported"), folder)
        note(f"{folder}: {len(saved.files)} nodes of {path.name}")
        if saved.left_out:
            note(f"left out, since the file does not say their types: {', '.join(saved.left_out)}")


def _gate(reports: list[OpsReport], fail_on: str | None, targets: list[str]) -> None:
    """``targets``: those asked for, or the file's own; what is shown beside them decides nothing."""
    from edgesam_deploy.ops import ALL

    failures = [row for found in reports for row in (found.failures(fail_on) if fail_on else ())]  # type: ignore[arg-type]
    counted = [row for row in failures if ALL in targets or row.target in targets]
    if counted:
        named = ", ".join(sorted({row.operator for row in counted}))
        raise UnsupportedOperators(f"{len(counted)} kinds of operators are not fully supported: {named}")
