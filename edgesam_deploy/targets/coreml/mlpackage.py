"""Writing a .mlpackage: what it says of itself, and the same bytes for the same model.

coremltools writes the date of the conversion, folders under random uuids and a table for another project's debugger;
protobuf writes maps in any order. None of that is left.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgesam_deploy.contract import TensorSpec
from edgesam_deploy.targets.coreml.interpreter.package import model_file, read_model
from edgesam_deploy.toolkits import require

PREFIX = "edgesam_deploy."  # of what the file says about itself beyond Core ML's own fields
DATE = "com.github.apple.coremltools.conversion_date"
AUTHOR = "edgesam-deploy"
NAMESPACE = uuid.UUID("6b0f6c0e-6d0a-5c0f-9d3b-0c1e1a5a7f10")  # of the identifiers in Manifest.json
KEPT = {"Manifest.json", "Data"}  # what Core ML reads of the folder


def write(models: Mapping[str, Any], path: Path, metadata: Mapping[str, str], tensors: Iterable[TensorSpec]) -> None:
    """Save coremltools models as the folder ``path``: one as it is, several as functions of these names, the first of
    which is the default. ``tensors``: the inputs and outputs, for their descriptions.

    ``metadata`` has ``model``, ``part``, ``license`` and ``edgesam_deploy_version``; all of it goes into the file.
    """
    if len(models) == 1:
        next(iter(models.values())).save(str(path))
    else:
        _save_functions(models, path)
    for entry in path.iterdir():
        if entry.name not in KEPT:
            entry.unlink()
    file = model_file(path)
    spec = read_model(path)
    _describe(spec.description, metadata, tensors)
    file.write_bytes(spec.SerializeToString(deterministic=True))
    _steady_manifest(path / "Manifest.json")


def _save_functions(models: Mapping[str, Any], path: Path) -> None:
    """One package with a function per model; a weight that several have is stored once."""
    functions = require("coremltools", "joining Core ML functions").utils
    joined = functions.MultiFunctionDescriptor()
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            model.save(f"{folder}/{name}.mlpackage")
            joined.add_function(f"{folder}/{name}.mlpackage", src_function_name="main", target_function_name=name)
        joined.default_function_name = next(iter(models))
        functions.save_multifunction(joined, str(path))


def _describe(description: Any, metadata: Mapping[str, str], tensors: Iterable[TensorSpec]) -> None:
    """Fill in the fields that Xcode and MLModel show."""
    about = description.metadata
    about.author, about.license = AUTHOR, metadata["license"]
    about.versionString = metadata["edgesam_deploy_version"]
    about.shortDescription = f"{metadata['part']} of {metadata['model']}"
    about.userDefined.pop(DATE, None)
    about.userDefined.update({f"{PREFIX}{key}": value for key, value in metadata.items()})
    meanings = {spec.name: spec.meaning for spec in tensors}
    for function in (description, *description.functions):  # of several functions each has its own inputs
        for entry in (*function.input, *function.output):
            entry.shortDescription = meanings[entry.name]


def _steady_manifest(path: Path) -> None:
    """Name the package's entries after their paths instead of at random."""
    content = json.loads(path.read_text())
    entries = content["itemInfoEntries"]
    names = {old: str(uuid.uuid5(NAMESPACE, entry["path"])) for old, entry in entries.items()}
    content["itemInfoEntries"] = {names[old]: entry for old, entry in entries.items()}
    content["rootModelIdentifier"] = names[content["rootModelIdentifier"]]
    path.write_text(json.dumps(content, indent=4, sort_keys=True) + "\n")
