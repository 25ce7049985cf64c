"""Portable ONNX for NPU compilers that take ONNX: an old opset, static shapes, few operators, by profile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgesam_deploy.contract import Interface
from edgesam_deploy.errors import UsageError
from edgesam_deploy.targets.base import option
from edgesam_deploy.targets.onnx import OnnxTarget

if TYPE_CHECKING:
    from edgesam_deploy.contract import SegmenterInterface
    from edgesam_deploy.model.configs import SamConfig
    from edgesam_deploy.model.cwsam.configs import CwsamConfig
    from edgesam_deploy.passes.engine import Pass

LOWERING = 18  # the exporter's oldest; the way down to the profile's opset is a pass


@dataclass(frozen=True)
class Profile:
    """What one compiler wants.

    ``opset``: where ``--opset`` is not given. ``rules``: its operator table. ``erf``: whether it knows Erf, else GELU
    is computed by tanh. ``comparisons``: whether it runs Equal, Greater and Cast from bool, else labels and stability
    scores are computed without. ``narrow``: integer operands become int32 where the specification allows it.
    """

    whose: str
    opset: int
    rules: str
    erf: bool
    comparisons: bool
    narrow: bool


PROFILES: dict[str, Profile] = {
    "tv": Profile(
        "the compiler of a television's SoC, as the NPU export of Kitemanul/EdgeSAM describes it",
        opset=11, rules="npu_tv", erf=True, comparisons=False, narrow=True,
    ),
    "mediatek": Profile(
        "MediaTek's Neuron compiler (MDLA 3.0)",
        opset=13, rules="npu_mediatek", erf=False, comparisons=False, narrow=True,
    ),
    "rknn": Profile(
        "RKNN-Toolkit2, which reads opset 12 to 19 and takes int64 where ONNX has it",
        opset=12, rules="npu_rknn", erf=True, comparisons=True, narrow=False,
    ),
    "generic": Profile(
        "what all of these and Qualcomm's compiler run",
        opset=11, rules="npu_generic", erf=False, comparisons=False, narrow=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class NpuTarget(OnnxTarget):
    """One .onnx file per part, without the operators that the profile's compiler refuses."""

    name: ClassVar[str] = "npu"
    summary: ClassVar[str] = f"portable ONNX for NPU compilers, by profile: {', '.join(PROFILES)}"
    rules: ClassVar[str] = "npu_tv"
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)

    opset: int = option(0, "ONNX operator set, 11 to 23; 0: the profile's own.")
    io: Literal["contract", "edgesam", "edgesam-dyt", "edgesam-npu", "sam"] = option(
        "edgesam-npu", "edgesam-npu takes encoded positions; others keep Sin and Cos, which such compilers refuse."
    )
    profile: Literal["tv", "mediatek", "rknn", "generic"] = option("tv", f"Whose limits: {', '.join(PROFILES)}.")
    split: bool = option(False, "The decoder in two parts: prompts and transformer, and the head that makes the masks.")

    def _check_opset(self) -> None:
        if self.profile not in PROFILES:
            raise UsageError(f"--profile {self.profile}: must be {', '.join(PROFILES)}")
        if self.opset == 0:
            object.__setattr__(self, "opset", PROFILES[self.profile].opset)  # so that the manifest names the real one
        if not 11 <= self.opset <= 23:
            raise UsageError(f"--opset {self.opset}: must be 11 to 23")
        if self.io == "sam":  # which resizes to sizes that are data, with operators of later opsets
            raise UsageError(
                f"--io sam: its masks are resized by orig_im_size, which {self.name} files cannot; use edgesam-npu"
            )
        if self.split and self.prompts_per_image > 1:
            raise UsageError("--split and --prompts-per-image both move work between parts; leave one out")

    @property
    def rule_table(self) -> str:
        return PROFILES[self.profile].rules

    def _promptable(self, *facts: Any) -> Interface:
        return replace(super()._promptable(*facts), split=self.split)

    def _semantic(self, config: CwsamConfig) -> SegmenterInterface:
        if self.split:
            raise UsageError("--split: a semantic model has no decoder to split; leave it out")
        return super()._semantic(config)

    def pipeline(self, config: SamConfig | CwsamConfig) -> tuple[Pass, ...]:
        from edgesam_deploy.passes import aten, onnx
        from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx

        profile = PROFILES[self.profile]
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
            aten.eliminate_dead_rows,  # of the prompt's tokens, after the last attention
            aten.limit_rank,
            *((aten.hoist_positional_encoding,) if self.io == "edgesam-npu" else ()),  # no Sin, no Cos
            *(() if profile.comparisons else (aten.boolean_to_float,)),  # no Equal, no Cast from bool
            *(() if profile.comparisons else (aten.legalize_comparison_sums,)),  # no Greater, for --scores stability
            aten.gather_to_slice,
            aten.decompose_layer_norm_2d,  # these compilers have no norm operator, and most compute in fp16
            aten.decompose_layer_norm,
            *(() if profile.erf else (aten.decompose_gelu,)),  # no Erf
            aten.decompose_spatial_mean,
            aten.eliminate_dead,
            lower_to_onnx(LOWERING, 8),
            onnx.legalize_cast_like,
            onnx.canonicalize_reshape,
            onnx.fold_constants,
            onnx.eliminate_identity,
            onnx.legalize_reciprocal,
            onnx.eliminate_common,
            onnx.set_opset(self.opset),
            *((onnx.narrow_int64_data,) if profile.narrow else ()),  # after the opset: it says what must be int64
            onnx.fold_constants,
            onnx.eliminate_dead,
            onnx.canonicalize_names,
        )
