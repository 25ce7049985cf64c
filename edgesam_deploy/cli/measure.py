"""bench: how fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesam_deploy.cli.console import JSON_HELP, note, print_json, progress_bar, stderr, stdout
from edgesam_deploy.errors import BenchmarkRegression, EdgeSamDeployError, OutputError, UsageError

if TYPE_CHECKING:
    from edgesam_deploy.bench.compare import Change

Json = Annotated[bool, typer.Option("--json", help=JSON_HELP)]
FILES = "Files to write"
DEVICE = "Device"
MOST_NAMED = 8  # regressions that the message spells out


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(no_args_is_help=True)(bench)


def bench(
    bundle: Annotated[list[Path], typer.Argument(help="Folders of bundles; the first is the baseline of the others.")],
    runs: Annotated[
        int | None, typer.Option(help="Measured calls per stage. Default 20.", min=1, show_default=False)
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time per stage and bundle, instead of --runs.", min=0.01, show_default=False)
    ] = None,
    warmup: Annotated[int, typer.Option(help="Calls before measuring.", min=0)] = 3,
    points: Annotated[str, typer.Option(help="Numbers of points per prompt, with commas.")] = "1,2,5",
    prompts: Annotated[str, typer.Option(help="Numbers of prompts answered together, with commas; 0: none.")] = "16",
    everything: Annotated[
        str, typer.Option(help="Sides of everything-mode's grid, with commas; 0: leave it out.")
    ] = "0",
    threads: Annotated[int, typer.Option(help="Threads of the runtime; 0: its own choice.", min=0)] = 0,
    provider: Annotated[
        str,
        typer.Option(
            help="cpu; openvino for onnx and npu; cuda where onnxruntime has it; on a device also qnn, tensorrt ..."
        ),
    ] = "cpu",
    cold: Annotated[bool, typer.Option("--cold/--no-cold", help="Also time a start in a process of its own.")] = True,
    device: Annotated[
        str, typer.Option(help="local, ssh:user@host[:port] or adb[:serial].", rich_help_panel=DEVICE)
    ] = "local",
    device_python: Annotated[
        str, typer.Option(help="The interpreter there that has NumPy and the runtime.", rich_help_panel=DEVICE)
    ] = "python3",
    ssh_config: Annotated[
        Path | None, typer.Option(help="Configuration for ssh instead of your own.", rich_help_panel=DEVICE)
    ] = None,
    benchmark_model: Annotated[
        Path | None,
        typer.Option(help="LiteRT's benchmark_model, built for the device: times .tflite.", rich_help_panel=DEVICE),
    ] = None,
    trtexec: Annotated[
        str | None,
        typer.Option(
            help="NVIDIA's trtexec, by its path on the device: times TensorRT bundles.",
            rich_help_panel=DEVICE,
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="An older bench.json, or a bundle that has one.", rich_help_panel=FILES)
    ] = None,
    fail_on: Annotated[
        str | None, typer.Option(help="End with 6 where a median is slower by more, such as 10%.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The result as JSON, all bundles in one.", rich_help_panel=FILES)
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="The result as tables.", rich_help_panel=FILES)] = None,
    pytest_json: Annotated[
        Path | None, typer.Option(help="As pytest-benchmark writes it.", rich_help_panel=FILES)
    ] = None,
    google_json: Annotated[
        Path | None, typer.Option(help="As Google Benchmark writes it.", rich_help_panel=FILES)
    ] = None,
    json: Json = False,
) -> None:
    """Latency of bundles, per part and end to end, here or on a device; writes bench.json into each bundle.

    Several bundles take turns in one run, so that their ratios mean something on a busy machine, too.
    """
    from edgesam_deploy.bench.compare import changes, differences, parse_limit, read_result, unmeasured
    from edgesam_deploy.bench.formats import google_benchmark_json, pytest_benchmark_json
    from edgesam_deploy.bench.formats import markdown as as_markdown
    from edgesam_deploy.bench.settings import RUNS, Settings
    from edgesam_deploy.bundle import dump_json, open_bundle

    if runs is not None and seconds is not None:
        raise UsageError("--runs and --seconds exclude each other: how often, or how long")
    if fail_on is not None and compare is None:
        raise UsageError(f"--fail-on {fail_on} needs --compare with the older result")
    limit = None if fail_on is None else parse_limit(fail_on)
    old = None if compare is None else read_result(compare)
    settings = Settings(
        runs or RUNS, warmup, seconds, _numbers("--points", points), _numbers("--prompts", prompts, zero=True),
        _numbers("--everything", everything, zero=True), threads, provider, cold,
    )  # fmt: skip
    opened = [open_bundle(path) for path in bundle]
    found = _measured(
        bundle, settings, device, device_python, ssh_config, benchmark_model=benchmark_model, trtexec=trtexec
    )
    print_json(found) if json else _print_latency(found)
    forms: tuple[tuple[Path | None, Callable[[Any], str]], ...] = (
        (out, dump_json),
        (markdown, as_markdown),
        (pytest_json, lambda result: dump_json(pytest_benchmark_json(result))),
        (google_json, lambda result: dump_json(google_benchmark_json(result))),
    )
    for path, form in forms:
        if path is not None:
            _write(path, form(found))
    if not found["complete"]:
        note(f"not complete: {found['incomplete_because']}")
    if old is not None:
        for difference in differences(found, old):
            note(f"compared with figures of other circumstances: {difference}")
        _judge(changes(found, old), limit, unmeasured(found, old), quiet=json)
    for one, row in zip(opened, found["bundles"], strict=True):  # last: a read-only folder must not hide the result
        one.write_json("bench.json", {**found, "bundles": [row], "ratios": []})


def _measured(
    paths: list[Path],
    settings: Any,
    spec: str,
    python: str,
    ssh_config: Path | None,
    *,
    benchmark_model: Path | None,
    trtexec: str | None,
) -> dict[str, Any]:
    from edgesam_deploy.bench.measure import measure
    from edgesam_deploy.devices import LocalDevice, open_device

    device = open_device(spec, ssh_config=ssh_config)
    with progress_bar(_steps(paths, settings)) as progress:
        if benchmark_model is not None:
            from edgesam_deploy.bench.tflite_tool import measure_with_tool

            with device:
                return measure_with_tool(device, paths, settings, benchmark_model, progress=progress)
        if trtexec is not None:
            from edgesam_deploy.bench.trtexec_tool import measure_with_trtexec

            with device:
                return measure_with_trtexec(device, paths, settings, trtexec, progress=progress)
        if isinstance(device, LocalDevice):
            return measure(paths, settings, progress=progress)
        from edgesam_deploy.bench.remote import measure_on

        with device:
            return measure_on(device, paths, settings, python=python, progress=progress)


def _steps(paths: list[Path], settings: Any) -> int:
    """About how many steps there will be, for the bar."""
    decoders = 2 * len(settings.points) + len(settings.prompts) + len(settings.everything)
    return 5 + decoders + (len(paths) if settings.cold else 0)


def _numbers(option: str, text: str, *, zero: bool = False) -> tuple[int, ...]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError as e:
        raise UsageError(f"{option} {text}: must be numbers with commas between, such as 1,2,5") from e
    if zero and numbers == [0]:
        return ()
    if not all(1 <= number <= 1024 for number in numbers) or len(set(numbers)) < len(numbers):
        raise UsageError(f"{option} {text}: must be different numbers from 1 to 1024")
    return tuple(numbers)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror}") from e


def _judge(found: list[Change], limit: float | None, lacking: list[str], *, quiet: bool) -> None:
    """Print what changed; raise BenchmarkRegression where a stage is slower than allowed, EdgeSamDeployError where one
    that has to be judged was not measured.
    """
    from rich.table import Table

    console: Callable[[], Any] = stderr if quiet else stdout
    table = Table("bundle", "stage", "before, ms", "now, ms", "ratio", title="medians against the older result")
    for change in found:
        table.add_row(change.bundle, change.stage, f"{change.before:.2f}", f"{change.now:.2f}", f"{change.ratio:.2f}")
    console().print(table)
    slower = [] if limit is None else [change for change in found if change.slower_than(limit)]
    if slower:
        listed = "\n  ".join(str(change) for change in slower[:MOST_NAMED])
        more = f"\n  and {len(slower) - MOST_NAMED} more" if len(slower) > MOST_NAMED else ""
        raise BenchmarkRegression(f"{len(slower)} of {len(found)} stages are slower than allowed\n  {listed}{more}")
    if limit is not None and lacking:
        raise EdgeSamDeployError(
            f"nothing measured is slower than allowed, but not everything was measured: {lacking[0]}"
            f"{f' (and {len(lacking) - 1} more)' if len(lacking) > 1 else ''}; measure again, or a new older result "
            "with these options"
        )


def _print_latency(found: Mapping[str, Any]) -> None:
    from rich.table import Table

    from edgesam_deploy.bench.formats import FIGURES, state_line
    from edgesam_deploy.bench.measure import trusted

    console = stdout()
    for row in found["bundles"]:
        facts = [row.get("executed") or "nothing", found["cpu"]]
        facts += [f"loaded in {row['load_ms']:.0f} ms"] if "load_ms" in row else []
        facts += [f"first answer of a new process {row['cold']['answered_ms']:.0f} ms"] if "cold" in row else []
        if row.get("cold", {}).get("peak_rss_mb"):
            facts.append(f"{row['cold']['peak_rss_mb']:.0f} MB")
        if "agreement" in row:
            facts.append(f"outputs there and here {row['agreement']:.1e} apart")
        table = Table("stage, ms", *FIGURES, title=f"{row['name']}: {'; '.join(facts)}")
        for stage in row["stages"]:
            table.add_row(stage["stage"], *("" if stage[c] is None else f"{stage[c]:.2f}" for c in FIGURES))
        console.print(table)
        for reason in row["skipped"]:
            console.print(f"left out: {reason}", soft_wrap=True)
    states = (f"{when}: {state_line(found[key])}" for when, key in _STATES.items() if found.get(key))
    console.print(f"{found['device']}; {'; '.join(states)}", soft_wrap=True)
    if not found["ratios"]:
        return
    ratios = Table("stage", "bundle", "ratio", "quartiles", "", title=f"ratios to {found['bundles'][0]['name']}")
    for row in found["ratios"]:
        verdict = "" if trusted(found, row["stage"]) else "no verdict: A/A leaves 1 +- 0.05"
        quartiles = f"{row['low']:.3f}-{row['high']:.3f}"
        ratios.add_row(row["stage"], row["bundle"], f"{row['median']:.3f}", quartiles, verdict)
    console.print(ratios)


_STATES = {"before": "state_before", "after": "state_after"}
