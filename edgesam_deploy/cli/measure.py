"""bench: how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgesam_deploy.cli.console import JSON_HELP, print_json, progress_bar, stdout

Json = Annotated[bool, typer.Option("--json", help=JSON_HELP)]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(no_args_is_help=True)(bench)


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
