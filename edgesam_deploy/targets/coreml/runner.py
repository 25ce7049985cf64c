"""A part of a Core ML bundle, run on this machine: by Core ML on a Mac, by the interpreter elsewhere."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.contract import IMAGE_ENCODER, MASK_DECODER, SEGMENTER
from edgesam_deploy.errors import BundleError, EdgeSamDeployError
from edgesam_deploy.targets.base import Arrays, Runner
from edgesam_deploy.targets.coreml.interpreter import Mode, open_mlpackage
from edgesam_deploy.targets.coreml.interpreter.package import read_model
from edgesam_deploy.targets.signatures import DECODE, ENCODE, LABELS, SEGMENT, fitting, with_slots
from edgesam_deploy.toolkits import require

FUNCTIONS = {IMAGE_ENCODER: ENCODE, MASK_DECODER: DECODE, SEGMENTER: SEGMENT}


def open_part(path: Path, part: str, mode: Mode = "declared") -> Runner:
    """A part in the package ``path``, ready to run; ``description`` says which of the two runs it: device or emulated.

    Raises BundleError for a package that cannot be read or does not have the part, MissingToolkit without coremltools.
    """
    kind = DeviceRunner if sys.platform == "darwin" else partial(EmulatedRunner, mode=mode)
    names = _functions(path, part)
    if len(names) > 1:
        return SeveralDecoders({int(name.rpartition("_")[2]): partial(kind, path, name) for name in names})
    return kind(path, names[0] if names else None)


def _functions(path: Path, part: str) -> list[str]:
    """The functions of a part; none where the package has one function alone, which has no name of its own."""
    known = [function.name for function in read_model(path).description.functions]
    found = [name for name in known if name.split("_")[0] == FUNCTIONS[part]]
    if known and not found:
        raise BundleError(f"{path} has no function for {part}, only {', '.join(known)}; build it again")
    return found


class SeveralDecoders:
    """Decoders by their number of slots; the smallest that holds the prompts runs, and is opened when it first does."""

    def __init__(self, openers: dict[int, Callable[[], Runner]]) -> None:
        self._openers = openers
        self._open: dict[int, Runner] = {}
        self.description = self._runner(min(openers)).description

    def _runner(self, count: int) -> Runner:
        if count not in self._open:
            self._open[count] = self._openers[count]()
        return self._open[count]

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        count = fitting(self._openers, inputs[LABELS])
        return self._runner(count)({name: with_slots(name, value, count) for name, value in inputs.items()})


class EmulatedRunner:
    """The interpreter. ``mode`` as its Model has it: ``declared`` rounds as the package declares."""

    def __init__(self, path: Path, function: str | None = None, mode: Mode = "declared") -> None:
        self.model = open_mlpackage(path, function, mode=mode)
        self.description = self.model.description

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return self.model.run(inputs)


class DeviceRunner:
    """Core ML itself, through coremltools; which compute unit runs what is Core ML's choice."""

    def __init__(self, path: Path, function: str | None = None) -> None:
        ct = require("coremltools", "running a Core ML package")
        try:
            self.model = ct.models.MLModel(str(path), function_name=function)
        except Exception as e:  # Core ML's errors have no common base
            raise BundleError(f"{path} cannot be loaded ({e}); edgesam-deploy verify tells if it is damaged") from e
        self.description = f"device: Core ML of macOS {platform.mac_ver()[0]}, coremltools {ct.__version__}"

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        try:
            outputs = self.model.predict(dict(inputs))
        except Exception as e:  # Core ML's errors have no common base
            raise EdgeSamDeployError(f"the artifact failed in its runtime: {e}") from e
        return {name: np.asarray(value) for name, value in outputs.items()}
