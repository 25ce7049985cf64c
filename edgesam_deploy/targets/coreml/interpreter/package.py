"""A .mlpackage folder: Manifest.json says which file is the model; the model says where its weights are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgesam_deploy.errors import BundleError
from edgesam_deploy.targets.coreml.interpreter.proto import PURPOSE, schema
from edgesam_deploy.toolkits import require

DATA = "Data"  # the folder that the manifest's paths are relative to
MODEL_PATH = "@model_path/"  # how a model names files beside itself
LARGEST = 1 << 31  # bytes: what protobuf can hold


def model_file(package: Path) -> Path:
    """The model.mlmodel inside ``package``. Raises BundleError where the manifest is missing, malformed or points
    outside the package.
    """
    manifest = package / "Manifest.json"
    try:
        content = json.loads(manifest.read_bytes())
        entry = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
    except OSError as e:
        raise BundleError(f"{package} is no .mlpackage: {e.strerror or e} (Manifest.json); build it again") from e
    except (ValueError, LookupError, TypeError, RecursionError) as e:
        raise BundleError(
            f"{manifest}: no itemInfoEntries[rootModelIdentifier].path ({type(e).__name__}: {e}); build it again"
        ) from e
    if not isinstance(entry, str):
        raise BundleError(f"{manifest}: the root model's path is {entry!r}; build it again")
    return inside(package / DATA, entry, manifest)


def read_model(package: Path) -> Any:
    """The protobuf Model of ``package``, an ML Program. Raises BundleError for anything else."""
    path = model_file(package)
    model = schema("Model_pb2").Model()
    try:
        if path.stat().st_size >= LARGEST:
            raise BundleError(f"{path}: {path.stat().st_size} bytes; a model file ends at 2 GiB")
        model.ParseFromString(path.read_bytes())
    except OSError as e:
        raise BundleError(f"{path} cannot be read ({e.strerror or e}); build it again") from e
    except _decode_error() as e:
        raise BundleError(f"{path} is no Core ML model ({e}); edgesam-deploy verify tells if it is damaged") from e
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise BundleError(f"{path}: a model of kind {kind}; only ML Programs (mlProgram) are run here")
    return model


def _decode_error() -> type[Exception]:
    """What parsing raises: its type comes with protobuf, which only reading needs."""
    error: type[Exception] = require("google.protobuf.message", PURPOSE).DecodeError
    return error


def weight_file(model: Path, name: str) -> Path:
    """The file that a model in ``model`` calls ``name``. Raises BundleError where that is not beside it."""
    if not name.startswith(MODEL_PATH):
        raise BundleError(f"{model}: weights in {name!r}, which does not start with {MODEL_PATH}; build it again")
    return inside(model.parent, name.removeprefix(MODEL_PATH), model)


def inside(folder: Path, entry: str, source: Path) -> Path:
    """``folder / entry``. Raises BundleError unless it is a file in ``folder``, links resolved."""
    path = folder / entry
    try:
        safe = path.resolve().is_relative_to(folder.resolve())
        there = safe and path.is_file()
    except (OSError, ValueError) as e:  # ValueError: a null byte
        raise BundleError(f"{source}: {entry!r} cannot be a path ({e}); build it again") from e
    if not safe:
        raise BundleError(f"{source} points outside its folder: {entry!r}; do not use this package")
    if not there:
        raise BundleError(f"{source} names {entry!r}, which is no file in {folder}; build it again")
    return path
