"""docs/targets/options.md, every target's options from their own definitions: python -m release.options"""

from __future__ import annotations

from dataclasses import Field
from pathlib import Path
from typing import Any

from edgesam_deploy.targets import TARGETS, target_class

FILE = Path(__file__).parents[1] / "docs" / "targets" / "options.md"
HEAD = """# Options of all targets

Written by `python -m release.options` from the targets' own definitions; `edgesam-deploy build --help` shows the
same. The columns have each target's default, or nothing where it has no such option. What a target or a model cannot
have of these is refused by name before anything is built; the target's page says which and why.

"""


def text() -> str:
    """The page."""
    options: dict[str, dict[str, Field[Any]]] = {}
    for target in TARGETS:
        for field in target_class(target).option_fields():
            options.setdefault(field.name, {})[target] = field
    lines = [f"| option | {' | '.join(TARGETS)} | what it does |", f"|{'---|' * (len(TARGETS) + 2)}"]
    for name, fields in options.items():
        defaults = [_default(fields[target]) if target in fields else "" for target in TARGETS]
        lines.append(f"| `--{name.replace('_', '-')}` | {' | '.join(defaults)} | {_meaning(fields)} |")
    return HEAD + "\n".join(lines) + "\n"


def _default(field: Field[Any]) -> str:
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    return "none" if field.default in (None, "") else f"`{field.default}`"


def _meaning(fields: dict[str, Field[Any]]) -> str:
    """What the targets say of an option; by target where they say different things."""
    said: dict[str, list[str]] = {}
    for target, field in fields.items():
        said.setdefault(field.metadata["help"], []).append(target)
    if len(said) == 1:
        return next(iter(said))
    return " ".join(f"*{', '.join(targets)}*: {words}" for words, targets in said.items())


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
    print(FILE)
