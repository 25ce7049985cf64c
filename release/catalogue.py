"""docs/catalogue.md, the passes with their docstrings and what they did on EdgeSAM: python -m release.catalogue"""

from __future__ import annotations

import inspect
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgesam_deploy.cli.inspect import library

FILE = Path(__file__).parents[1] / "docs" / "catalogue.md"
HEAD = """# Pass catalogue

Written by `python -m release.catalogue` from the passes' own docstrings and from what they did when models were built
(`python -m benchmarks.passes_on_edge_sam`); `edgesam-deploy passes NAME` shows the same for one. How passes are proved:
[passes](passes.md).

"""


def text() -> str:
    """The page."""
    rows = json.loads((files("edgesam_deploy.passes") / "on_edge_sam.json").read_text("utf-8"))
    passes = sorted(library().items())
    index = "".join(
        f"| [{name}](#{name}) | {entry.dialect} | {_bound(entry)} | {entry.why} |\n" for name, entry in passes
    )
    table = "| pass | level | may change outputs by | what it does |\n|---|---|---|---|\n"
    return HEAD + table + index + "".join(_section(name, entry, rows) for name, entry in passes)


def _bound(entry: Any) -> str:
    return "rounding only" if entry.is_exact else f"{entry.bound:.1e}"


def _section(name: str, entry: Any, rows: list[dict[str, Any]]) -> str:
    doc = inspect.cleandoc(entry.run.__doc__ or "")
    note = "" if entry.is_exact else f" ({entry.note})"
    mine = [row for row in rows if row["pass"] == name and row["sites"]]
    head = "| model | target | part | sites | operators | relative L2 |\n|---|---|---|---|---|---|\n"
    effect = head + "".join(
        f"| {r['model']} | {r['target']} | {r['part']} | {r['sites']} | {r['operators_before']} to "
        f"{r['operators_after']} | {'' if r['relative_l2'] is None else format(r['relative_l2'], '.1e')} |\n"
        for r in mine
    )
    shown = effect if mine else "On EdgeSAM: stands in no pipeline, or finds nothing there.\n"
    bound = f"Level {entry.dialect}; may change outputs by: {_bound(entry)}{note}."
    return f"\n## {name}\n\n{bound}\n\n```text\n{doc}\n```\n\n{shown}"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
    print(FILE)
