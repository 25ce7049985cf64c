"""C++17 for ONNX Runtime.

edgesam_deploy.hpp   the host's part, the standard library alone
main.cpp             an example for ONNX Runtime's C++ API: reads a PPM, runs the parts, writes a PGM
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgesam_deploy.targets.integration.artifact import Artifact, filled

HEADER, EXAMPLE, README = "edgesam_deploy.hpp", "main.cpp", "README.md"


def files(artifact: Artifact) -> dict[str, str]:
    """File name -> content; no example where the bundle holds an image encoder alone."""
    values = {**artifact.values("f"), "parts": _parts(artifact)}
    pieces = artifact.pieces
    hosts = ("cpp/picture.hpp", *(f"cpp/{piece}.hpp" for piece in pieces), "cpp/end.hpp")
    written = {HEADER: filled(hosts, values)}
    readme = ["readme_head.md", "cpp/readme_header.md", *(f"cpp/readme_{piece}.md" for piece in pieces)]
    main = {"prompts": "cpp/prompt_main.cpp", "segmenter": "cpp/class_main.cpp"}.get(pieces[-1])
    if main is not None and artifact.kind == ".onnx":
        written[EXAMPLE] = filled(("cpp/runtime.cpp", main), values)
        readme.append("cpp/readme_example.md")
    return {**written, README: filled(readme, values)}


def _parts(artifact: Artifact) -> str:
    """The example's table of parts, as they run."""
    names = artifact.interface.parts(promptable=len(artifact.parts) > 1)
    return "\n".join(_part(artifact.parts[name]) for name in names)


def _part(entry: Mapping[str, Any]) -> str:
    inputs, outputs = (", ".join(json.dumps(t["name"]) for t in entry[side]) for side in ("inputs", "outputs"))
    return f"    {{{json.dumps(entry['file'])}, {{{inputs}}}, {{{outputs}}}}},"
