"""Portable ONNX for NPU compilers that take ONNX: an old opset, static shapes, few operators, by profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from edgesam_deploy.errors import UsageError
from edgesam_deploy.targets.base import option
from edgesam_deploy.targets.onnx import OnnxTarget

if TYPE_CHECKING:
    from edgesam_deploy.model.configs import SamConfig
    from edgesam_deploy.model.cwsam.configs import CwsamConfig
    from edgesam_deploy.passes.engine import Pass

LOWERING = 18  # the exporter's oldest; the way down to the profile's opset is a pass


@dataclass(frozen=True)
class NpuTarget(OnnxTarget):
    """One .onnx file per part, without the operators that the profile's compiler refuses.

    ``tv``: the compiler of a television's SoC, as the NPU export of Kitemanul/EdgeSAM describes it.
    """

    name: ClassVar[str] = "npu"
    summary: ClassVar[str] = "portable ONNX for NPU compilers (opset 11, positions encoded by the host)"
    rules: ClassVar[str] = "npu_tv"

    opset: int = option(11, "ONNX operator set, 11 to 23.")
    io: Literal["contract", "edgesam", "edgesam-dyt", "edgesam-npu", "sam"] = option(
        "edgesam-npu", "edgesam-npu takes encoded positions; others keep Sin and Cos, which such compilers refuse."
    )
    profile: Literal["tv"] = option("tv", "Whose limits: tv.")

    def _check_opset(self) -> None:
        if not 11 <= self.opset <= 23:
            raise UsageError(f"--opset {self.opset}: must be 11 to 23")
        if self.profile != "tv":
            raise UsageError(f"--profile {self.profile}: must be tv")

    def pipeline(self, config: SamConfig | CwsamConfig) -> tuple[Pass, ...]:
        from edgesam_deploy.passes import aten, onnx
        from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx

        return (
            aten.eliminate_identity,
            aten.fold_constants,
            aten.legalize_moe_routing,
            aten.decompose_fft,
            aten.fold_batch_norm,
            aten.merge_parallel_convs,
            aten.fold_batch_norm,
            aten.fold_dyt_affine,
            aten.legalize_bicubic,
            aten.limit_rank,
            *((aten.hoist_positional_encoding,) if self.io == "edgesam-npu" else ()),  # no Sin, no Cos
            aten.boolean_to_float,  # no Equal, no Cast from bool
            aten.legalize_comparison_sums,  # no Greater; does nothing unless --scores stability
            aten.gather_to_slice,
            aten.decompose_layer_norm_2d,  # these compilers have no norm operator, and most compute in fp16
            aten.decompose_layer_norm,
            aten.decompose_spatial_mean,
            aten.eliminate_dead,
            lower_to_onnx(LOWERING, 8),
            onnx.legalize_cast_like,
            onnx.canonicalize_reshape,
            onnx.fold_constants,
            onnx.eliminate_identity,
            onnx.eliminate_common,
            onnx.set_opset(self.opset),
            onnx.narrow_int64_data,  # after the opset: which operands must be int64 depends on it
            onnx.fold_constants,
            onnx.eliminate_dead,
            onnx.canonicalize_names,
        )
