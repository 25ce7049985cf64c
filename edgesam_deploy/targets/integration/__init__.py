"""Files that help an app use a bundle, written into its folder ``integration`` from the manifest and hashed with it.

What runs a bundle's files decides the language: C++17 for ONNX, Kotlin for TFLite, Swift for Core ML. Each has the
host's part of the work, without dependencies (preprocessing, prompt slots, positional encoding, choice of the mask,
post-processing), what runs the bundle on its runtime, and a README.md; README.md alone, which says why, where that
would be wrong for an artifact.

The templates lie beside this module, one per piece; ``$name`` is filled in, and a name that nothing fills is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgesam_deploy.contract import IMAGE_ENCODER, SEGMENTER, SegmenterInterface, interface_from
from edgesam_deploy.targets.integration import cpp, kotlin, swift
from edgesam_deploy.targets.integration.artifact import Artifact, filled, uncovered

FOLDER = "integration"
README = "README.md"
LANGUAGES: Mapping[str, Callable[[Artifact], dict[str, str]]] = {  # by the end of a file's name
    ".onnx": cpp.files,
    ".tflite": kotlin.files,
    ".mlpackage": swift.files,
}


def write_integration(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the bundle's ``integration`` folder from the content of its manifest. The same content, the same bytes."""
    for name, text in integration_files(manifest).items():
        path = folder / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def integration_files(manifest: Mapping[str, Any]) -> dict[str, str]:
    """File name -> content. README.md alone, which says why, where no code covers the artifact."""
    interface = interface_from(manifest["contract"])
    artifact = Artifact(manifest, interface)
    reason = uncovered(artifact)
    if reason is not None:
        head = {"title": artifact.title, "version": artifact.version, "image_size": str(interface.image_size)}
        return {README: filled(("readme_head.md", "readme_refused.md"), {**head, "reason": reason})}
    first = manifest["parts"][SEGMENTER if isinstance(interface, SegmenterInterface) else IMAGE_ENCODER]
    return LANGUAGES.get(Path(first["file"]).suffix, cpp.files)(artifact)
