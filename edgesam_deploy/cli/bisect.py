"""bisect: which pass broke a model, and at which node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesam_deploy.cli.build import Proof
from edgesam_deploy.cli.console import JSON_HELP, print_json, progress_bar, say
from edgesam_deploy.cli.options import (
    Checkpoint,
    Config,
    ImageSize,
    Model,
    Seed,
    TargetName,
    config_changes,
    with_target_options,
)
from edgesam_deploy.errors import PassError, UsageError

if TYPE_CHECKING:
    from edgesam_deploy.model.cwsam.model import Cwsam
    from edgesam_deploy.model.sam import Sam
    from edgesam_deploy.passes.bisect import Bisection, Finding
    from edgesam_deploy.passes.program import Program
    from edgesam_deploy.targets.base import Target


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(no_args_is_help=True)(with_target_options(bisect))


def bisect(
    model: Model,
    target: TargetName = "onnx",
    checkpoint: Checkpoint = None,
    seed: Seed = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where sub-graphs go. Default out/MODEL/TARGET.bisect.")
    ] = None,
    image_size: ImageSize = None,
    config: Config = None,
    proof: Annotated[Proof, typer.Option(help="fast: two inputs, full: four.")] = Proof.fast,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Also find the pass after which the whole pipeline changed outputs by more (relative L2)."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
    options: dict[str, Any] | None = None,
) -> None:
    """Name the first pass that breaks a model, the first node in it, and write the smallest sub-graph that shows it.

    Ends with 1 where one was found.
    """
    from edgesam_deploy.model.configs import ALIASES, model_config
    from edgesam_deploy.targets import make_target

    model_config(model)  # wrong names fail before PyTorch is loaded
    changes = config_changes(config, image_size)
    chosen = make_target(target, **(options or {}))
    if checkpoint is not None and seed is not None:
        raise UsageError("--seed is for random weights; leave it out with --checkpoint")
    if proof is Proof.off:
        raise UsageError("--proof off: there is nothing to search without a proof; use fast or full")
    folder = out if out is not None else Path("out") / ALIASES.get(model, model) / f"{chosen.name}.bisect"

    from edgesam_deploy.memory import check_memory
    from edgesam_deploy.model.registry import configured, load
    from edgesam_deploy.passes.bisect import bisect as search
    from edgesam_deploy.passes.engine import SEEDS

    if checkpoint is None:  # before gigabytes are drawn; a file tells its sizes only when it is read
        check_memory(configured(model, config=changes), model)
    loaded = load(model, checkpoint, seed=seed, config=changes)
    pipeline = chosen.pipeline(loaded.config)
    programs, on_twin = _programs(loaded, chosen, proof)
    found: list[Bisection] = []
    with progress_bar(len(pipeline) * len(programs)) as progress:
        for program in programs:
            found.append(
                search(program, pipeline, out=folder, seeds=SEEDS[proof.value], tolerance=tolerance, progress=progress)
            )
    findings = [part.finding for part in found if part.finding is not None]
    if json:
        print_json({"target": chosen.name, "parts": [_row(part, part.part in on_twin) for part in found]})
    else:
        _print(found, findings, on_twin)
    if findings:
        raise PassError(findings[0].sentence())


def _programs(model: Sam | Cwsam, target: Target, proof: Proof) -> tuple[list[Program], set[str]]:
    """The parts, after the passes that move work between them, and the names of those that stand in for one too large
    to run after every pass. Raises PassError where such a pass leaves its bound: it is what was searched for.
    """
    from edgesam_deploy.capture import capture, capture_twins, part_macs
    from edgesam_deploy.passes.engine import Engine
    from edgesam_deploy.passes.joint import run_joint_passes

    interface = target.interface(model.config)
    twins = capture_twins(model, interface, part_macs(model.config, interface))
    programs, twins = run_joint_passes(
        Engine(proof.value), capture(model, interface), twins, target.joint_pipeline(model.config)
    )
    return [twins.get(program.name, program) for program in programs], set(twins)


def _row(part: Bisection, on_twin: bool) -> dict[str, Any]:
    from dataclasses import asdict

    finding = None if part.finding is None else asdict(part.finding)
    if finding is not None:
        finding["folder"] = None if finding["folder"] is None else str(finding["folder"])
    return {
        "part": part.part,
        "on_twin": on_twin,
        "passes": [asdict(row) for row in part.rows],
        "finding": finding,
    }


def _print(found: list[Bisection], findings: list[Finding], on_twin: set[str]) -> None:
    for part in found:
        done = [row for row in part.rows if row.sites]
        total = done[-1].total if done else 0.0
        beside = " (on a twin of fewer blocks)" if part.part in on_twin else ""
        ran = f"{len(part.rows)} passes ran, {len(done)} rewrote something"
        say(f"{part.part}{beside}: {ran}; {total:.1e} from the model")
    if not findings:
        say("every pass keeps its bound")
    for finding in findings:
        say(f"\n{finding.sentence()}")
        if finding.folder is not None:
            nodes = ", ".join(finding.region) or "none: a constant"
            say(f"the smallest sub-graph that shows it is in {finding.folder} (nodes: {nodes}); to run it:\n")
            say(finding.recipe)
