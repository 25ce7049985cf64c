"""ops, bench: what runs where, and how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgesam_deploy.cli.console import JSON_HELP, print_json, progress_bar, stdout
from edgesam_deploy.errors import UnsupportedOperators, UsageError

Json = Annotated[bool, typer.Option("--json", help=JSON_HELP)]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(no_args_is_help=True)(ops)
    app.command(no_args_is_help=True)(bench)


def ops(
    subject: Annotated[Path, typer.Argument(help="An .onnx file or the folder of a bundle.")],
    target: Annotated[str, typer.Option("--target", "-t", help="One target or several, separated by commas.")] = "onnx",
    fail_on: Annotated[str | None, typer.Option(help="unsupported or partial: exit 5 where there is one.")] = None,
    json: Json = False,
) -> None:
    """Which operators a target runs, and why not. Offline."""
    from edgesam_deploy.ops import render, report

    if fail_on not in (None, "unsupported", "partial"):
        raise UsageError(f"--fail-on {fail_on}: must be unsupported or partial")
    asked = [name.strip() for name in target.split(",")]
    reports = {path.name: report(path, asked) for path in _files(subject)}
    if json:
        print_json({name: found.to_json() for name, found in reports.items()})
    else:
        for found in reports.values():
            render(found, stdout())
    failures = [row for found in reports.values() for row in (found.failures(fail_on) if fail_on else ())]  # type: ignore[arg-type]
    if failures:
        named = ", ".join(sorted({row.operator for row in failures}))
        raise UnsupportedOperators(f"{len(failures)} kinds of operators are not fully supported: {named}")


def _files(subject: Path) -> list[Path]:
    from edgesam_deploy.bundle import open_bundle

    if subject.is_dir():
        bundle = open_bundle(subject)
        return [bundle.path / entry["file"] for entry in bundle.manifest["parts"].values()]
    if not subject.exists():
        raise UsageError(f"{subject}: no such file; give an .onnx file or the folder of a bundle")
    return [subject]


def bench(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    runs: Annotated[int, typer.Option(help="Measured calls per stage.", min=1)] = 20,
    warmup: Annotated[int, typer.Option(help="Calls before measuring.", min=0)] = 3,
    threads: Annotated[int, typer.Option(help="Threads of the runtime; 0: its own choice.", min=0)] = 0,
    provider: Annotated[str, typer.Option(help="cpu, or cuda where onnxruntime has it.")] = "cpu",
    json: Json = False,
) -> None:
    """Latency of a bundle on this machine, per stage; writes bench.json into the bundle."""
    from edgesam_deploy.bench import measure_latency
    from edgesam_deploy.bundle import open_bundle

    opened = open_bundle(bundle)
    with progress_bar(6) as progress:
        found = measure_latency(bundle, warmup=warmup, runs=runs, threads=threads, provider=provider, progress=progress)
    print_json(found) if json else _print_latency(found)
    opened.write_json("bench.json", found)  # last: what was measured is shown even where the folder is read-only


def _print_latency(found: dict[str, Any]) -> None:
    from rich.table import Table

    columns = ("first", "mean", "min", "p50", "p90", "p99", "std")
    table = Table(
        "stage, ms", *columns, title=f"{found['executed']}; {found['machine']}; loaded in {found['load_ms']:.0f} ms"
    )
    for row in found["stages"]:
        table.add_row(row["stage"], *(f"{row[c]:.2f}" for c in columns))
    stdout().print(table)
