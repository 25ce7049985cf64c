"""models, targets, passes, doctor, fetch: what there is, and what this machine can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from edgesam_deploy.cli import names
from edgesam_deploy.cli.console import JSON_HELP, note, print_json, say, stdout
from edgesam_deploy.errors import EdgeSamDeployError, UnknownName, UsageError

if TYPE_CHECKING:
    from edgesam_deploy.passes.engine import Pass
    from edgesam_deploy.passes.joint import JointPass

Json = Annotated[bool, typer.Option("--json", help=JSON_HELP)]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (models, targets, passes, doctor, fetch):
        app.command()(command)


def models(json: Json = False) -> None:
    """List the models that can be built."""
    from edgesam_deploy.model.configs import ALIASES, MODELS

    aliases = {name: [a for a, m in ALIASES.items() if m == name] for name in MODELS}
    if json:
        print_json({n: {"description": c.description, "aliases": aliases[n]} for n, c in MODELS.items()})
        return
    table = Table("model", "what it is", "also called", "licence of published weights")
    for name, config in MODELS.items():
        table.add_row(name, config.description, ", ".join(aliases[name]), config.licence)
    stdout().print(table)


def targets(json: Json = False) -> None:
    """List the targets, what each needs, and whether that is installed."""
    from edgesam_deploy.targets import target_class, target_names
    from edgesam_deploy.toolkits import is_installed

    rows: dict[str, dict[str, Any]] = {}
    for name in target_names():
        try:
            cls = target_class(name)
        except EdgeSamDeployError as e:  # of a plug-in
            rows[name] = {"summary": str(e), "missing": ["a working plug-in"], "options": []}
            continue
        missing = [t for t in dict.fromkeys((*cls.toolkits, *cls.runtime)) if not is_installed(t)]
        rows[name] = {"summary": cls.summary, "missing": missing, "options": [f.name for f in cls.option_fields()]}
    if json:
        print_json(rows)
        return
    table = Table("target", "what it emits", "missing here")
    for name, row in rows.items():
        table.add_row(name, str(row["summary"]), ", ".join(row["missing"]) or "nothing")
    stdout().print(table)


def passes(
    name: Annotated[str | None, typer.Argument(help="A pass, to see its picture and its reason.")] = None,
    target: Annotated[
        str, typer.Option("--target", "-t", help="Whose pipeline.", autocompletion=names.targets)
    ] = "onnx",
    json: Json = False,
) -> None:
    """List a target's pipeline with each pass's reason, or explain one pass of the library."""
    pipeline = _pipeline(target)
    if name is not None:
        known = library() | {p.name: p for p in pipeline}
        if name not in known:
            raise UnknownName("pass", name, known)
        _explain(known[name], json=json)
        return
    rows = [{"name": p.name, "dialect": p.dialect, "bound": p.bound, "what": p.why} for p in pipeline]
    if json:
        print_json(rows)
        return
    table = Table("", "pass", "level", "may change outputs by", "what it does")
    for index, (row, entry) in enumerate(zip(rows, pipeline, strict=True), 1):
        bound = "rounding only" if entry.is_exact else f"{row['bound']:.1e}"
        table.add_row(str(index), str(row["name"]), str(row["dialect"]), bound, str(row["what"]))
    stdout().print(table)


def _pipeline(target: str) -> tuple[Pass, ...]:
    from edgesam_deploy.model.configs import model_config
    from edgesam_deploy.targets import make_target

    return make_target(target).pipeline(model_config("edge_sam"))


def library() -> dict[str, Pass | JointPass]:
    """Every pass that is one without being told sizes or versions, in a pipeline or not; aten's where both have one."""
    from edgesam_deploy.passes import aten, onnx
    from edgesam_deploy.passes.engine import Pass
    from edgesam_deploy.passes.hoist_image_side import hoist_image_side

    found = {name: getattr(room, name) for room in (onnx, aten) for name in room.__all__}
    return {name: entry for name, entry in found.items() if isinstance(entry, Pass)} | {
        hoist_image_side.name: hoist_image_side
    }


def _explain(chosen: Pass | JointPass, *, json: bool) -> None:
    import inspect

    text = inspect.cleandoc(chosen.run.__doc__ or "")
    rows = _on_edge_sam(chosen.name)
    if json:
        facts = {"name": chosen.name, "dialect": chosen.dialect, "bound": chosen.bound, "text": text}
        print_json({**facts, "on_edge_sam": rows})
        return
    bound = "rounding only" if chosen.is_exact else f"{chosen.bound:.1e} relative L2: {chosen.note}"
    say(f"{chosen.name}  ({chosen.dialect}; may change outputs by: {bound})\n\n{text}\n")
    table = Table("model", "target", "part", "sites", "operators", "relative L2", title="what it did")
    for row in rows:
        counts = f"{row['operators_before']} -> {row['operators_after']}"
        error = "" if row["relative_l2"] is None else f"{row['relative_l2']:.1e}"
        table.add_row(row["model"], row["target"], row["part"], str(row["sites"]), counts, error)
    if rows:
        stdout().print(table)
    else:
        say("on EdgeSAM: stands in no pipeline, or finds nothing there")


def _on_edge_sam(name: str) -> list[dict[str, Any]]:
    """What a pass did when EdgeSAM was built (python -m benchmarks.passes_on_edge_sam)."""
    from importlib.resources import files
    from json import loads

    rows = loads((files("edgesam_deploy.passes") / "on_edge_sam.json").read_text("utf-8"))
    return [row for row in rows if row["pass"] == name and row["sites"]]


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Do not try to import what is installed.")] = False,
    json: Json = False,
) -> None:
    """Say what is installed, whether it can be used, what is missing, and how to get it.

    Usable is what a fresh interpreter imports without an error; that takes seconds where the toolkits are installed.
    """
    from edgesam_deploy.doctor import examine

    found = examine(imports=not quick)
    if json:
        print_json(found)
        return
    for key, value in found["machine"].items():
        say(f"{key}: {value}")
    words = {True: "yes", False: "no", None: ""}
    table = Table("for", "package", "installed", "usable", "to get it, or what is wrong")
    for row in found["packages"]:
        advice = row["fault"] if row["version"] else row["install"]
        table.add_row(row["for"], row["package"], row["version"] or "no", words[row["usable"]], advice)
    stdout().print(table)
    table = Table("target", "builds here", "runs here", "to get it, or what is wrong")
    for row in found["targets"]:
        lacking = [", ".join(row[key]) for key in ("missing_to_build", "missing_to_run")]
        table.add_row(row["target"], *(f"no: needs {names}" if names else "yes" for names in lacking), row["install"])
    stdout().print(table)


def fetch(
    name: Annotated[
        str | None, typer.Argument(help="A published checkpoint, see --list.", autocompletion=names.checkpoints)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the names.")] = False,
    json: Json = False,
) -> None:
    """Download a published checkpoint into the cache, or say how to get it by hand."""
    from edgesam_deploy.model.fetch import SOURCES, resolve

    if list_:
        _list_sources(json=json)
        return
    if name is None:
        raise UsageError("give the name of a checkpoint, or --list")
    if name not in SOURCES:
        raise UnknownName("checkpoint", name, SOURCES)
    path = resolve(name, progress=_download_progress())
    print_json({"name": name, "path": str(path)}) if json else say(str(path))


def _download_progress() -> Any:
    shown = -1

    def report(done: int, total: int | None) -> None:
        nonlocal shown
        percent = -1 if not total else done * 100 // total
        if percent // 10 > shown // 10:
            shown = percent
            note(f"{percent} % of {(total or 0) / 2**20:.0f} MiB")

    return report


def _list_sources(*, json: bool) -> None:
    from edgesam_deploy.model.fetch import SOURCES

    rows = [
        {"name": s.name, "model": s.model, "kind": s.kind, "licence": s.licence, "cached": s.cached.exists()}
        for s in SOURCES.values()
    ]
    if json:
        print_json(rows)
        return
    table = Table("name", "model", "from", "licence", "in the cache")
    for row in rows:
        table.add_row(*(str(row[k]) for k in ("name", "model", "kind", "licence")), "yes" if row["cached"] else "")
    stdout().print(table)
