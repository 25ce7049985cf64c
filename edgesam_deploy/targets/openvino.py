"""ONNX in the forms that OpenVINO is fastest with, run by OpenVINO: for Intel's CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from edgesam_deploy.errors import UsageError
from edgesam_deploy.targets.base import Arrays, Runner, option
from edgesam_deploy.targets.onnx import OnnxTarget
from edgesam_deploy.targets.openvino_runner import OPENVINO, OpenvinoRunner

if TYPE_CHECKING:
    from edgesam_deploy.passes.program import Program


@dataclass(frozen=True)
class OpenvinoTarget(OnnxTarget):
    """One .onnx file per part, which OpenVINO reads as it is; no converted copy that would have to be proved again."""

    name: ClassVar[str] = "openvino"
    summary: ClassVar[str] = "ONNX for OpenVINO on Intel's CPUs: fp32, or an 8-bit encoder; parity measured in OpenVINO"
    toolkits: ClassVar[tuple[str, ...]] = (*OnnxTarget.toolkits, "openvino")
    runtime: ClassVar[tuple[str, ...]] = ("openvino",)
    tools: ClassVar[tuple[str, ...]] = (*OnnxTarget.tools, "openvino")
    rules: ClassVar[str] = "openvino"

    precision: Literal["fp32", "int8"] = option(
        "fp32", "Type of weights and arithmetic; int8: the encoder's convolutions, and the sums between them."
    )

    @property
    def measured_on(self) -> str:
        return OPENVINO

    def _quantise_parts(self, programs: Sequence[Program], rows: Sequence[Arrays]) -> dict[str, list[str]]:
        """8 bit where convolutions and sums read: what lies between, GELU as well, OpenVINO computes inside of them."""
        from edgesam_deploy.targets.onnx_int8 import quantise

        return {programs[0].name: quantise(programs[0], rows, fused=True)}

    def load(
        self, path: Path, *, part: str = "", provider: str = "cpu", threads: int = 0, lean: bool = False
    ) -> Runner:
        if provider not in ("cpu", OPENVINO):
            raise UsageError(f"--provider {provider}: {self.name} bundles run in OpenVINO on the CPU; leave it out")
        return OpenvinoRunner(path, threads)
