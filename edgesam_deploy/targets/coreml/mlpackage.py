"""Writing a .mlpackage: what it says of itself, and the same bytes for the same model.

coremltools writes the date of the conversion, folders under random uuids and a table for another project's debugger;
protobuf writes maps in any order. None of that is left.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesam_deploy.contract import TensorSpec
from edgesam_deploy.targets.coreml.interpreter.package import model_file, read_model

PREFIX = "edgesam_deploy."  # of what the file says about itself beyond Core ML's own fields
DATE = "com.github.apple.coremltools.conversion_date"
AUTHOR = "edgesam-deploy"
NAMESPACE = uuid.UUID("6b0f6c0e-6d0a-5c0f-9d3b-0c1e1a5a7f10")  # of the identifiers in Manifest.json
KEPT = {"Manifest.json", "Data"}  # what Core ML reads of the folder


def write(model: Any, path: Path, metadata: Mapping[str, str], tensors: tuple[TensorSpec, ...]) -> None:
    """Save a coremltools model as the folder ``path``. ``tensors``: the inputs and outputs, for their descriptions.

    ``metadata`` has ``model``, ``part``, ``license`` and ``edgesam_deploy_version``; all of it goes into the file.
    """
    model.save(str(path))
    for entry in path.iterdir():
        if entry.name not in KEPT:
            entry.unlink()
    file = model_file(path)
    spec = read_model(path)
    _describe(spec.description, metadata, tensors)
    file.write_bytes(spec.SerializeToString(deterministic=True))
    _steady_manifest(path / "Manifest.json")


def _describe(description: Any, metadata: Mapping[str, str], tensors: tuple[TensorSpec, ...]) -> None:
    """Fill in the fields that Xcode and MLModel show."""
    about = description.metadata
    about.author, about.license = AUTHOR, metadata["license"]
    about.versionString = metadata["edgesam_deploy_version"]
    about.shortDescription = f"{metadata['part']} of {metadata['model']}"
    about.userDefined.pop(DATE, None)
    about.userDefined.update({f"{PREFIX}{key}": value for key, value in metadata.items()})
    meanings = {spec.name: spec.meaning for spec in tensors}
    for entry in (*description.input, *description.output):
        entry.shortDescription = meanings[entry.name]


def _steady_manifest(path: Path) -> None:
    """Name the package's entries after their paths instead of at random."""
    content = json.loads(path.read_text())
    entries = content["itemInfoEntries"]
    names = {old: str(uuid.uuid5(NAMESPACE, entry["path"])) for old, entry in entries.items()}
    content["itemInfoEntries"] = {names[old]: entry for old, entry in entries.items()}
    content["rootModelIdentifier"] = names[content["rootModelIdentifier"]]
    path.write_text(json.dumps(content, indent=4, sort_keys=True) + "\n")
