"""data synthesize, data check: data sets to train on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgesam_deploy.cli.console import JSON_HELP, note, print_json, progress_bar, say, stdout

Json = Annotated[bool, typer.Option("--json", help=JSON_HELP)]
Layout = Annotated[str, typer.Option(help="sa1b, sa1b_tar, coco, lvis, lvis_cocofied, pairs or semantic.")]
Split = Annotated[str, typer.Option(help="Which part of the data set.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(name="data", help="Data sets to train on: make one, check one.", no_args_is_help=True)
    group.command(no_args_is_help=True)(synthesize)
    group.command(no_args_is_help=True)(check)
    app.add_typer(group)


def synthesize(
    folder: Annotated[Path, typer.Argument(help="Where the data set goes.")],
    count: Annotated[int, typer.Option(help="Number of pictures.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Other seeds give other scenes.", min=0)] = 0,
    size: Annotated[int, typer.Option(help="Long side in pixels.")] = 256,
    split: Split = "train",
    most: Annotated[int, typer.Option(help="Objects drawn, at most; they may cover each other.")] = 9,
    smallest: Annotated[float, typer.Option(help="Radius of an object, at least, of the short side.")] = 0.07,
    rings: Annotated[float, typer.Option(help="Share of objects with a hole.")] = 0.15,
    covered: Annotated[float, typer.Option(help="No mask of an object of which more than this share is hidden.")] = 1.0,
    json: Json = False,
) -> None:
    """Make scenes of shapes with exact masks, in SA-1B's layout: train and val of one seed share no scene."""
    from edgesam_deploy.distill.synthetic import Style
    from edgesam_deploy.distill.synthetic import synthesize as write_scenes

    style = Style(most, smallest, rings, covered)
    with progress_bar(count, lines=10) as progress:
        for stem in write_scenes(folder, count=count, seed=seed, size=size, split=split, style=style):
            progress(stem)
    made = {"folder": str(folder), "split": split, "pictures": count, "seed": seed, "size": size, **asdict(style)}
    print_json(made) if json else say(f"{count} scenes in {folder}/images/{split}")


def check(
    folder: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    layout: Layout = "sa1b",
    split: Split = "train",
    json: Json = False,
) -> None:
    """Read every sample as training does; list what is broken or odd. Exit code 1 if anything is broken."""
    from rich.table import Table

    from edgesam_deploy.distill.data import open_source
    from edgesam_deploy.distill.data.check import check_source, orphans

    source = open_source(layout, folder, split)
    with progress_bar(len(source), lines=10) as progress:
        report = check_source(source, progress)
    lonely = orphans(folder, split) if layout == "sa1b" else []
    report.odd.update((stem, "annotations without a picture") for stem in lonely)
    if json:
        print_json(report.as_json())
    else:
        table = Table("sample", "", "what is wrong")
        for state, found in (("broken", report.broken), ("odd", report.odd)):
            for name, problem in found.items():
                table.add_row(name, state, problem)
        if table.row_count:
            stdout().print(table)
        say(f"{report.pictures} pictures, {report.objects} objects, {len(report.broken)} broken, {len(report.odd)} odd")
    if report.broken:
        note("training would replace the broken samples by their neighbours, and count them")
        raise typer.Exit(1)
