"""train and embed: distillation from the command line, alone or under torchrun."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesam_deploy.cli.console import note, print_json, progress_bar, say, stderr
from edgesam_deploy.cli.data import Json, Layout, Split
from edgesam_deploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgesam_deploy.distill.engine import Outcome, Progress
    from edgesam_deploy.distill.recipe import Recipe

Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
SIGTERM_CODE = 143


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(no_args_is_help=True)(train)
    app.command(no_args_is_help=True)(embed)


def train(
    recipe: Annotated[
        str, typer.Argument(help="A built-in recipe (--list), a .toml, or a .yaml of the reference.")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run. Default out/RECIPE.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, for every stage. Repeat.")
    ] = None,
    continued: Annotated[
        Path | None,
        typer.Option("--import", help="Begin where a run of the reference stopped: its ckpt_epoch_N.pth."),
    ] = None,
    device: Device = "auto",
    listed: Annotated[bool, typer.Option("--list", help="Show the built-in recipes.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the recipe as it would be run, and stop.")] = False,
    json: Json = False,
) -> None:
    """Train by a recipe; the same command resumes a run that was interrupted. Under torchrun: on all its ranks."""
    from edgesam_deploy.distill.recipe import read_stages

    if listed:
        _list(json)
        return
    if not recipe:
        raise UsageError("name a recipe; `edgesam-deploy train --list` shows what there is")
    folder = out or Path("out") / Path(recipe).stem
    stages = read_stages(recipe, changes or (), out=folder)
    if dry_run:
        print_json([stage.model_dump(mode="json") for stage in stages])
        return
    from edgesam_deploy.distill.parallel import ranks
    from edgesam_deploy.distill.train import train_stages

    with ranks(device) as here:
        speak: Callable[[str], None] = note if here.first else lambda text: None
        with _Shown(here.first) as report:
            outcomes = train_stages(stages, folder, here, say=speak, report=report, continued=continued)
    if not here.first:
        return
    _print_outcomes(stages, outcomes, json)
    if outcomes[-1] is not None and outcomes[-1].status == "stopped":
        note("stopped; the same command goes on from the checkpoint")
        raise typer.Exit(SIGTERM_CODE)


def _list(json: bool) -> None:
    import tomllib

    from edgesam_deploy.distill.recipe import built_in

    found = {name: tomllib.loads(path.read_text()).get("description", "") for name, path in built_in().items()}
    if json:
        print_json(found)
        return
    for name, text in found.items():
        say(f"{name:28} {text}")


def _print_outcomes(stages: list[Recipe], outcomes: list[Outcome | None], json: bool) -> None:
    from dataclasses import asdict

    rows: list[dict[str, Any]] = []
    for stage, outcome in zip(stages, outcomes, strict=False):
        if outcome is None:
            rows.append({"stage": stage.name, "status": "done before"})
        else:
            model = None if outcome.model is None else str(outcome.model)
            rows.append({"stage": stage.name, "status": outcome.status, "model": model, **asdict(outcome.progress)})
    if json:
        print_json(rows)
        return
    for row in rows:
        text = f"{row['stage']}: {row['status']}"
        if "loss" in row:
            text += f", update {row['update']} of {row['total']}, loss {row['loss']:.4f}"
            text += f", {row['broken']} samples left out" if row["broken"] else ""
            text += f", {row['model']}" if row["model"] else ""
        say(text)


class _Shown:
    """Progress on stderr: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, first: bool) -> None:
        self.bar: Any = None
        self.first = first
        self.task: dict[str, Any] = {}

    def __enter__(self) -> Callable[[Recipe, Progress], None]:
        console = stderr()
        if self.first and console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            text = TextColumn("{task.description}", markup=False)
            self.bar = Progress(text, BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
            self.bar.start()
        return self.report

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def report(self, recipe: Recipe, now: Progress) -> None:
        """One line of figures, or the bar moved."""
        if not self.first:
            return
        terms = " ".join(f"{name} {value:.4f}" for name, value in now.terms.items())
        figures = f"loss {now.loss:.4f} ({terms}) lr {now.rate:.2e} {now.images_per_s:.1f} images/s"
        if self.bar is None:
            print(f"  {recipe.name} {now.update}/{now.total} {figures}", file=sys.stderr)
            return
        if recipe.name not in self.task:
            self.task[recipe.name] = self.bar.add_task(recipe.name, total=now.total)
        self.bar.update(self.task[recipe.name], completed=now.update, description=f"{recipe.name} {figures}")


def embed(
    model: Annotated[str, typer.Argument(help="The teacher: a model name.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of the data set.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the embeddings; what it holds already is kept.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Its weights, a file or a name of: edgesam-deploy fetch.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="JSON file with sizes that have no name.")] = None,
    layout: Layout = "sa1b",
    split: Split = "train",
    form: Annotated[str, typer.Option("--format", help="checked (with checksums), or reference.")] = "checked",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 1,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Write a teacher's image embeddings, for recipes with teacher.embeddings. Resumes; under torchrun: sharded."""
    if form not in ("checked", "reference"):
        raise UsageError(f"--format {form}: must be checked or reference")
    if checkpoint is None:
        raise UsageError("--checkpoint: a teacher with random weights teaches nothing; name its weights")
    from edgesam_deploy.cli.options import config_changes
    from edgesam_deploy.distill.data import open_source
    from edgesam_deploy.distill.data.items import ItemOptions, Items
    from edgesam_deploy.distill.embeddings import embed as write_embeddings
    from edgesam_deploy.distill.parallel import ranks
    from edgesam_deploy.model.registry import load
    from edgesam_deploy.model.sam import Sam

    with ranks(device) as here:
        teacher = load(model, checkpoint, config=config_changes(config, None))
        if not isinstance(teacher, Sam):
            raise UsageError(f"{model}: a semantic model is no teacher here")
        items = Items(open_source(layout, data, split), ItemOptions(teacher.image_size))
        count = left = 0
        with progress_bar(-(-len(items) // here.world), lines=10) as progress:
            for count, left in write_embeddings(  # noqa: B007 - what the last one says
                teacher.to(here.device),
                items,
                out,
                form,  # type: ignore[arg-type]
                here,
                batch_size=batch_size,
            ):
                progress(f"{count} pictures")
    made = {"folder": str(out), "pictures": len(items), "written by this rank": count, "left out by this rank": left}
    print_json(made) if json else say(f"{out}: {count} embeddings written now, for a data set of {len(items)} pictures")
    if left:
        note(f"{left} pictures cannot be read and have no embedding; edgesam-deploy data check names them")
