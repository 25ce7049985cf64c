"""Swift for Core ML: a package that Xcode and SwiftPM take.

Package.swift
Sources/EdgeSamDeploy/EdgeSamDeploy.swift   the host's part, Foundation alone
Sources/EdgeSamDeploy/CoreMLSession.swift   the bundle on Core ML
"""

from __future__ import annotations

import json
from pathlib import Path

from edgesam_deploy.contract import MASK_DECODER
from edgesam_deploy.targets.integration.artifact import Artifact, filled, flag

SOURCES = "Sources/EdgeSamDeploy"
HOST, SESSION = f"{SOURCES}/EdgeSamDeploy.swift", f"{SOURCES}/CoreMLSession.swift"
PACKAGE, README = "Package.swift", "README.md"
SESSIONS = {"prompts": "prompt_session", "segmenter": "class_session", "encoder": "encoder_session"}
SYSTEMS = {"iOS16": ("16.0", "13.0"), "iOS17": ("17.0", "14.0"), "iOS18": ("18.0", "15.0")}  # and the macOS beside it


def files(artifact: Artifact) -> dict[str, str]:
    """File name -> content."""
    decoder = artifact.parts.get(MASK_DECODER)
    ios, macos = SYSTEMS[artifact.manifest["options"]["deployment_target"]]
    values = {
        **artifact.values(""),
        "ios": ios,
        "macos": macos,
        "encoder_name": Path(artifact.first["file"]).stem,
        "encoder_outputs": ", ".join(json.dumps(t["name"]) for t in artifact.first["outputs"]),
        "decoder_name": "" if decoder is None else Path(decoder["file"]).stem,
        "gives_sam": flag(decoder is not None and any(t["name"] == "masks_sam" for t in decoder["outputs"])),
    }
    pieces = artifact.pieces
    host = [f"swift/{piece}.swift" for piece in ("picture", *pieces)]
    session = [f"swift/{piece}.swift" for piece in ("session", SESSIONS[pieces[-1]])]
    readme = [f"swift/readme_{piece}.md" for piece in ("start", pieces[-1], "checked")]
    return {
        PACKAGE: filled(["swift/package.swift"], values),
        HOST: filled(host, values),
        SESSION: filled(session, values),
        README: filled(["readme_head.md", *readme], values),
    }
