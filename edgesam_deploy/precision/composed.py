"""Programs as an artifact in memory: the predictors that open bundles, over aten programs instead of files.

So whatever is looked at in between sees real pictures, real embeddings and real prompts, in any layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesam_deploy.bundle import Bundle
from edgesam_deploy.contract import SEGMENTER, Interface, SegmenterInterface, TensorSpec, describe_tensors
from edgesam_deploy.passes.program import Program
from edgesam_deploy.runtime import BundlePredictor, BundleSegmenter
from edgesam_deploy.targets.base import Arrays, Runner

if TYPE_CHECKING:
    from edgesam_deploy.passes.engine import Pass
    from edgesam_deploy.targets.base import Target

Run = Callable[[dict[str, Tensor]], list[Tensor]]


class ProgramRunner:
    """A part that ``run`` computes: tensors by name to the outputs in the program's order."""

    def __init__(self, program: Program, run: Run, description: str) -> None:
        self.inputs = program.inputs
        self.outputs = [spec.name for spec in program.outputs]
        self.run, self.description = run, description

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        found = self.run({spec.name: _fed(spec, inputs[spec.name]) for spec in self.inputs})
        return {name: value.contiguous().numpy() for name, value in zip(self.outputs, found, strict=True)}


def _fed(spec: TensorSpec, value: NDArray[Any]) -> Tensor:
    """An input of the contract as the program takes it: of a picture perhaps planes of floats instead of pixels."""
    tensor = torch.from_numpy(value)
    if spec.role == "image" and spec.dtype == "float32":
        return tensor.permute(0, 3, 1, 2).float()
    return tensor


def artifact_of(
    programs: Sequence[Program], target: Target, interface: Interface | SegmenterInterface, runs: Mapping[str, Runner]
) -> BundlePredictor | BundleSegmenter:
    """A predictor whose parts are ``runs``, by the programs' names."""
    parts = {p.name: {"inputs": describe_tensors(p.inputs), "passes": []} for p in programs}
    manifest = {
        "target": target.name, "options": target.options(), "contract": interface.describe(), "parts": parts, "macs": {}
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        for program in programs:
            for name, array in program.sidecars.items():
                (Path(folder) / f"{name}.bin").write_bytes(array.astype("<f4").tobytes())
        bundle = Bundle(Path(folder), manifest)  # sidecars are read at once, and there is nothing else in it
        return BundleSegmenter(bundle, dict(runs)) if SEGMENTER in runs else BundlePredictor(bundle, dict(runs))


def given_to(
    part: str,
    programs: Sequence[Program],
    target: Target,
    interface: Interface | SegmenterInterface,
    computed: Callable[[Program], Run],
) -> tuple[BundlePredictor | BundleSegmenter, list[Mapping[str, Tensor]]]:
    """An artifact whose parts are what ``computed`` makes of their programs, and a list, which fills with what ``part``
    is given whenever the artifact answers.
    """
    seen: list[Mapping[str, Tensor]] = []

    def watched(program: Program) -> ProgramRunner:
        run = computed(program)

        def noted(inputs: dict[str, Tensor]) -> list[Tensor]:
            if program.name == part:
                seen.append({name: value.clone() for name, value in inputs.items()})
            return run(inputs)

        return ProgramRunner(program, noted, "in memory")

    return artifact_of(programs, target, interface, {p.name: watched(p) for p in programs}), seen


def aten_passes(pipeline: Sequence[Pass]) -> tuple[Pass, ...]:
    """The passes of a pipeline that come before the program changes its dialect."""
    names = [step.name for step in pipeline]
    end = names.index("lower_to_onnx") if "lower_to_onnx" in names else len(pipeline)
    return tuple(pipeline[:end])
