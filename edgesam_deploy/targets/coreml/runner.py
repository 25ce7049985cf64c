"""A part of a Core ML bundle, run on this machine: by Core ML on a Mac, by the interpreter elsewhere."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgesam_deploy.contract import IMAGE_ENCODER, MASK_DECODER, SEGMENTER
from edgesam_deploy.errors import BundleError, EdgeSamDeployError, PromptError
from edgesam_deploy.targets.base import Arrays, Runner
from edgesam_deploy.targets.coreml.interpreter import Mode, open_mlpackage
from edgesam_deploy.targets.coreml.interpreter.features import Feature, features
from edgesam_deploy.targets.coreml.interpreter.package import read_model
from edgesam_deploy.targets.signatures import DECODE, ENCODE, LABELS, SEGMENT, fitting, with_slots
from edgesam_deploy.toolkits import require

FUNCTIONS = {IMAGE_ENCODER: ENCODE, MASK_DECODER: DECODE, SEGMENTER: SEGMENT}


def open_part(path: Path, part: str, mode: Mode = "declared") -> Runner:
    """A part in the package ``path``, ready to run; ``description`` says which of the two runs it: device or emulated.

    Raises BundleError for a package that cannot be read or does not have the part, MissingToolkit without coremltools.
    """
    kind = DeviceRunner if sys.platform == "darwin" else partial(EmulatedRunner, mode=mode)
    description = read_model(path).description
    names = _functions(description, path, part)
    if len(names) > 1:
        return SeveralDecoders({int(name.rpartition("_")[2]): partial(kind, path, name) for name in names})
    name = names[0] if names else None
    most = _most_slots(features(description, name or ""))
    return kind(path, name) if most is None else VaryingDecoder(kind(path, name), most)


def _functions(description: Any, path: Path, part: str) -> list[str]:
    """The functions of a part; none where the package has one function alone, which has no name of its own."""
    known = [function.name for function in description.functions]
    found = [name for name in known if name.split("_")[0] == FUNCTIONS[part]]
    if known and not found:
        raise BundleError(f"{path} has no function for {part}, only {', '.join(known)}; build it again")
    return found


def _most_slots(inputs: Mapping[str, Feature]) -> int | None:
    """The largest number of slots of a decoder that takes any up to it; None where it takes one number alone."""
    labels = inputs.get(LABELS)
    return labels.ranges[1][1] if labels is not None and labels.ranges else None


class VaryingDecoder:
    """A decoder that takes any number of slots up to a bound."""

    def __init__(self, runner: Runner, most: int) -> None:
        self._runner, self._most = runner, most
        self.description = runner.description

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        if inputs[LABELS].shape[1] > self._most:
            raise PromptError(f"{inputs[LABELS].shape[1]} slots; the artifact has at most {self._most}")
        return self._runner(inputs)


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
        colors = {name for name, feature in self.model.features.items() if feature.colors is not None}
        return self.model.run({name: value[0] if name in colors else value for name, value in inputs.items()})


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
        pictures = {name: Image.fromarray(value[0]) for name, value in inputs.items() if value.dtype == np.uint8}
        try:
            outputs = self.model.predict({**inputs, **pictures})
        except Exception as e:  # Core ML's errors have no common base
            raise EdgeSamDeployError(f"the artifact failed in its runtime: {e}") from e
        return {name: np.asarray(value) for name, value in outputs.items()}
