"""A part of a .tflite file, run on this machine by whichever runtime is here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.contract import IMAGE_ENCODER, MASK_DECODER
from edgesam_deploy.errors import BundleError, EdgeSamDeployError
from edgesam_deploy.targets.base import Arrays
from edgesam_deploy.targets.signatures import DECODE, ENCODE, LABELS, SEGMENT, fitting, with_slots
from edgesam_deploy.targets.tflite.toolkits import runtime


class TfliteRunner:
    """Takes and gives what the contract says, whatever the file's layout and however many decoders it has.

    Of several decoders the smallest that holds the prompts runs; empty slots at the end are dropped first and added
    again, which is exact.
    """

    def __init__(self, path: Path, part: str, threads: int = 0) -> None:
        interpreter, name = runtime()
        count = threads or os.cpu_count() or 1
        try:
            self._interpreter = interpreter(model_path=str(path), num_threads=count)  # keeps the weights alive
            known = self._interpreter.get_signature_list()
            self._runners = {key: self._interpreter.get_signature_runner(key) for key in _wanted(part, known)}
        except (ValueError, RuntimeError, OSError) as e:
            first = (str(e).splitlines() or [type(e).__name__])[0]
            raise BundleError(f"{path} cannot be loaded ({first}); edgesam-deploy verify tells if it is damaged") from e
        if not self._runners:
            raise BundleError(f"{path} has no signature for {part}, only {', '.join(known)}; build it again")
        self._shapes = {key: _shapes(runner) for key, runner in self._runners.items()}
        self.description = f"{name}, {count} thread(s)"

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        key = self._chosen(inputs)
        shapes = self._shapes[key]
        feeds = {name: _fitted(name, value, shapes) for name, value in inputs.items() if name in shapes}
        try:
            return dict(self._runners[key](**feeds))
        except (ValueError, RuntimeError) as e:
            raise EdgeSamDeployError(f"the artifact failed in its runtime: {str(e).splitlines()[0]}") from e

    def _chosen(self, inputs: Arrays) -> str:
        """The signature with the fewest slots that holds the prompts."""
        if LABELS not in inputs:
            return next(iter(self._runners))
        by_count = {shapes[LABELS][1]: key for key, shapes in self._shapes.items()}
        return by_count[fitting(by_count, inputs[LABELS])]


def _wanted(part: str, known: Any) -> list[str]:
    if part == MASK_DECODER:
        return sorted(key for key in known if key.startswith(f"{DECODE}_"))
    return [key for key in known if key == (ENCODE if part == IMAGE_ENCODER else SEGMENT)]


def _shapes(runner: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(int(d) for d in entry["shape"]) for name, entry in runner.get_input_details().items()}


def _fitted(name: str, value: NDArray[Any], shapes: dict[str, tuple[int, ...]]) -> NDArray[Any]:
    """The contract's array as the file wants it: channels last, and as many slots as the signature has."""
    wanted = shapes[name]
    if name == "image" and value.shape != wanted and value.ndim == 4:
        value = value.transpose(0, 2, 3, 1)
    if len(wanted) > 1:
        value = with_slots(name, value, wanted[1])
    return np.ascontiguousarray(value)
