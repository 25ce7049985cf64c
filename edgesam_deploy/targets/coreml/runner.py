"""A part of a Core ML bundle, run on this machine: by Core ML on a Mac, by the interpreter elsewhere."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.errors import BundleError, EdgeSamDeployError
from edgesam_deploy.targets.base import Arrays, Runner
from edgesam_deploy.targets.coreml.interpreter import Mode, open_mlpackage
from edgesam_deploy.toolkits import require


def open_part(path: Path, mode: Mode = "declared") -> Runner:
    """The package in ``path``, ready to run; ``description`` says which of the two runs it: device or emulated.

    Raises BundleError for a package that cannot be read, MissingToolkit without coremltools.
    """
    return DeviceRunner(path) if sys.platform == "darwin" else EmulatedRunner(path, mode)


class EmulatedRunner:
    """The interpreter. ``mode`` as its Model has it: ``declared`` rounds as the package declares."""

    def __init__(self, path: Path, mode: Mode = "declared") -> None:
        self.model = open_mlpackage(path, mode=mode)
        self.description = self.model.description

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return self.model.run(inputs)


class DeviceRunner:
    """Core ML itself, through coremltools; which compute unit runs what is Core ML's choice."""

    def __init__(self, path: Path) -> None:
        ct = require("coremltools", "running a Core ML package")
        try:
            self.model = ct.models.MLModel(str(path))
        except Exception as e:  # Core ML's errors have no common base
            raise BundleError(f"{path} cannot be loaded ({e}); edgesam-deploy verify tells if it is damaged") from e
        self.description = f"device: Core ML of macOS {platform.mac_ver()[0]}, coremltools {ct.__version__}"

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        try:
            outputs = self.model.predict(dict(inputs))
        except Exception as e:  # Core ML's errors have no common base
            raise EdgeSamDeployError(f"the artifact failed in its runtime: {e}") from e
        return {name: np.asarray(value) for name, value in outputs.items()}
