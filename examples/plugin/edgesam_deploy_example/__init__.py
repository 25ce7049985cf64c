"""One of each plug-in."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.targets.base import option
from edgesam_deploy.targets.onnx import OnnxTarget

TABLE = files(__name__) / "example_npu.json"


@dataclass(frozen=True)
class ExampleTarget(OnnxTarget):
    """ONNX as the built-in target writes it, under the extension that some runtime wants its files to have."""

    name: ClassVar[str] = "example-fp32"
    summary: ClassVar[str] = "ONNX for the example runtime"
    rules: ClassVar[str] = "example-npu"

    remark: str = option("", "A word that goes into the artifact's options.")

    def file(self, part: Any) -> str:
        """The artifact's name in the bundle."""
        return f"example_{super().file(part)}"


class Centre:
    """The middle of the picture: what a photographer most likely meant."""

    def __call__(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One box of half the width and height."""
        height, width = image.shape[:2]
        box = [[width / 4, height / 4, 3 * width / 4, 3 * height / 4]]
        return np.array(box, np.float32), np.ones(1, np.float32)
