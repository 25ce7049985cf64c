"""Kotlin for LiteRT.

EdgeSamDeploy.kt   the host's part, Kotlin's standard library alone
LiteRt.kt          the bundle on LiteRT's Interpreter, by its signatures
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgesam_deploy.contract import IMAGE_ENCODER, MASK_DECODER, SEGMENTER
from edgesam_deploy.targets.integration.artifact import Artifact, filled, flag
from edgesam_deploy.targets.signatures import DECODE, ENCODE, SEGMENT

HOST, SESSION, README = "EdgeSamDeploy.kt", "LiteRt.kt", "README.md"
SESSIONS = {"prompts": ("prompt_session",), "segmenter": ("class_session",), "encoder": ()}


def files(artifact: Artifact) -> dict[str, str]:
    """File name -> content."""
    decoders = _decoders(artifact)
    values = {
        **artifact.values("f"),
        "channels_last": flag(_channels_last(artifact)),
        "slot_choices": ", ".join(map(str, decoders)),
        "signatures": ", ".join(f"`{DECODE}_{count}`" for count in decoders),
        "parts": _parts(artifact, decoders),
    }
    pieces = artifact.pieces
    host = [f"kotlin/{piece}.kt" for piece in ("picture", *pieces)]
    session = [f"kotlin/{piece}.kt" for piece in ("session", *SESSIONS[pieces[-1]])]
    readme = [f"kotlin/readme_{piece}.md" for piece in ("start", pieces[-1], "checked")]
    return {
        HOST: filled(host, values),
        SESSION: filled(session, values),
        README: filled(["readme_head.md", *readme], values),
    }


def _channels_last(artifact: Artifact) -> bool:
    """Whether the float image is (1, S, S, 3); bytes always are."""
    return artifact.first["inputs"][0]["shape"][-1] == 3 and not artifact.interface.embed_preprocess


def _decoders(artifact: Artifact) -> dict[int, Mapping[str, Any]]:
    """Number of slots -> the decoder's part that has it, ascending."""
    found = [entry for name, entry in artifact.parts.items() if name.startswith(MASK_DECODER)]
    return dict(sorted((_slots(entry), entry) for entry in found))


def _slots(entry: Mapping[str, Any]) -> int:
    return next(int(t["shape"][1]) for t in entry["inputs"] if t["name"] == "point_labels")


def _parts(artifact: Artifact, decoders: Mapping[int, Mapping[str, Any]]) -> str:
    parts = artifact.parts
    if SEGMENTER in parts:
        return f"val SEGMENTER = {_part(parts[SEGMENTER], SEGMENT)}"
    lines = [f"val ENCODER = {_part(parts[IMAGE_ENCODER], ENCODE)}"]
    if decoders:
        rows = (f"    {count} to {_part(entry, f'{DECODE}_{count}')}," for count, entry in decoders.items())
        lines += ["", "/** By the number of slots. */", "val DECODERS = mapOf(", *rows, ")"]
    return "\n".join(lines)


def _part(entry: Mapping[str, Any], signature: str) -> str:
    names = (", ".join(json.dumps(t["name"]) for t in entry[side]) for side in ("inputs", "outputs"))
    inputs, outputs = (f"listOf({listed})" for listed in names)
    return f"Part({json.dumps(entry['file'])}, {json.dumps(signature)}, {inputs}, {outputs})"
