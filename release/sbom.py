"""The bill of materials that the wheel carries (CycloneDX 1.6, in .dist-info/sboms): python -m release.sbom

Components are the distributions that pyproject.toml asks for, with and without extras, in the versions that this
release was tested with (constraints.txt; constraints-demo.txt for the demo), or without a version where none was.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from edgesam_deploy.bundle import dump_json
from edgesam_deploy.notices import pypi, sbom

ROOT = Path(__file__).parents[1]
FILE = ROOT / "release" / "sbom.cdx.json"


def document() -> dict[str, Any]:
    """The SBOM of the project as pyproject.toml and the constraints describe it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tested = {**_pins(ROOT / "constraints-demo.txt"), **_pins(ROOT / "constraints.txt")}
    wanted: dict[str, set[str]] = {}
    for extra, lines in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for line in lines:
            name = re.match(r"[\w.-]+", line)[0]  # type: ignore[index]
            if name != project["name"]:
                wanted.setdefault(name, set()).add(extra)
    components = [_component(name, tested.get(_plain(name)), extras) for name, extras in sorted(wanted.items())]
    subject = pypi(project["name"], project["version"])
    return sbom(
        {**subject, "type": "application", "licenses": [{"license": {"id": project["license"]}}]}, components, []
    )


def _component(name: str, version: str | None, extras: set[str]) -> dict[str, Any]:
    entry = pypi(name, version) if version else {"type": "library", "bom-ref": f"pkg:pypi/{name}", "name": name}
    scope = "required" if "" in extras else "optional"
    properties = [{"name": "edgesam_deploy:extra", "value": extra} for extra in sorted(extras - {""})]
    return {**entry, "scope": scope, **({"properties": properties} if properties else {})}


def _pins(path: Path) -> dict[str, str]:
    lines = (line.split("#")[0].strip().partition("==") for line in path.read_text().splitlines())
    return {_plain(name): version for name, equal, version in lines if equal}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    FILE.write_text(dump_json(document()), "utf-8")
    print(FILE)
