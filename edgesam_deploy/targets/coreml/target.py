"""Core ML for iPhone, iPad and Mac: ML Programs with static shapes, fp16 by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgesam_deploy.contract import DYNAMIC, IMAGE_ENCODER, Interface, SegmenterInterface
from edgesam_deploy.errors import UsageError
from edgesam_deploy.targets.base import Half, Runner, Target, option
from edgesam_deploy.targets.coreml.compress import COMPRESSED, compressed
from edgesam_deploy.targets.coreml.convert import DEPLOYMENT_TARGETS, EXACTLY, convert, leading_to
from edgesam_deploy.targets.coreml.mlpackage import write
from edgesam_deploy.targets.coreml.runner import open_part
from edgesam_deploy.targets.quiet import quiet

if TYPE_CHECKING:
    from edgesam_deploy.model.configs import SamConfig
    from edgesam_deploy.model.cwsam.configs import CwsamConfig
    from edgesam_deploy.passes.engine import Pass
    from edgesam_deploy.passes.program import Program

PRECISIONS = ("fp16", "fp32", *COMPRESSED)
EDGESAM_POINTS = 5  # what its apps send, padded


@dataclass(frozen=True)
class CoremlTarget(Target):
    """encoder.mlpackage and decoder.mlpackage: a folder each, which Xcode and coremltools take as one file."""

    name: ClassVar[str] = "coreml"
    summary: ClassVar[str] = "Core ML ML Programs; parity measured by executing the package here, emulated off a Mac"
    extension: ClassVar[str] = "mlpackage"
    toolkits: ClassVar[tuple[str, ...]] = ("torch", "coremltools")
    runtime: ClassVar[tuple[str, ...]] = ("coremltools",)
    tools: ClassVar[tuple[str, ...]] = ("coremltools",)
    rules: ClassVar[str] = "coreml"
    holds_islands: ClassVar[bool] = True

    precision: Literal["fp16", "fp32", "int8", "palette8", "palette6"] = option(
        "fp16",
        "Type of weights and arithmetic. On coreml, int8 and palettes (tables of 256 or 64 values) are for weights "
        "alone, arithmetic in fp16.",
    )
    auto_mixed: bool = option(
        False, "Keep in fp32 the fewest operators without which fp16 leaves its bounds, found by emulation."
    )
    deployment_target: Literal["iOS16", "iOS17", "iOS18"] = option("iOS17", "Oldest system that must run it.")

    def __post_init__(self) -> None:
        for name in ("points", "batch"):
            if getattr(self, name) == DYNAMIC:
                raise UsageError(
                    f"--{name} {DYNAMIC}: coreml has static shapes; give a number: empty slots are excluded exactly"
                )
        if self.io in ("sam", "edgesam-dyt"):
            raise UsageError(
                f"--io {self.io} has varying sizes or booleans, which Core ML's inputs do not; use --io contract"
            )
        if self.embed_preprocess:
            raise UsageError("--embed-preprocess: Core ML takes no arrays of uint8; leave it out, or use --target onnx")
        if self.precision not in PRECISIONS:
            raise UsageError(f"--precision {self.precision}: must be {', '.join(PRECISIONS)}")
        if self.deployment_target not in DEPLOYMENT_TARGETS:
            raise UsageError(f"--deployment-target {self.deployment_target}: must be {', '.join(DEPLOYMENT_TARGETS)}")
        if self.auto_mixed and self.precision != "fp16":
            raise UsageError(f"--auto-mixed: --precision {self.precision} has nothing to mix; use --precision fp16")
        super().__post_init__()

    def require_toolkits(self) -> None:
        with quiet("importing coremltools"):  # which lists the parts of it that only a Mac has
            super().require_toolkits()

    def _promptable(self, *args: Any) -> Interface:
        fixed = self.points is None and self.io == "edgesam"
        chosen: Any = replace(self, points=EDGESAM_POINTS) if fixed else self
        return Target._promptable(chosen, *args)

    @property
    def half(self) -> Half:
        return "none" if self.precision == "fp32" else "arithmetic"

    def islands(self, program: Program) -> frozenset[str]:
        return program.islands | leading_to(program, EXACTLY)

    def pipeline(self, config: SamConfig | CwsamConfig) -> tuple[Pass, ...]:
        from edgesam_deploy.passes import aten

        return (
            aten.eliminate_identity,  # first: identity repeats and the tracer's assertions hide every pattern below
            aten.fold_constants,  # dense positions, relative-position tables: before anything is matched around them
            aten.legalize_moe_routing,
            aten.decompose_fft,  # after folding: the filter's mask is a constant then
            aten.fold_batch_norm,  # gives the depthwise branches plain weights, which merging needs
            aten.merge_parallel_convs,
            aten.fold_batch_norm,  # again: the DyT fork keeps one more norm behind the sum that has just been merged
            aten.fold_dyt_affine,
            aten.legalize_bicubic,  # MIL has no bicubic operator
            aten.fuse_channel_norm,  # one operator, whose squares stay inside: spelled out they overflow in fp16
            aten.fuse_gelu,
            aten.limit_rank,  # Core ML's tensors have five axes at most
            *((aten.hoist_positional_encoding,) if self.io == "edgesam-npu" else ()),
            aten.merge_label_rows,
            aten.merge_parallel_heads,
            aten.fold_scale,
            aten.eliminate_dead,  # last: the converter would lower dead operators too
        )

    def emit(
        self, program: Program, interface: Interface | SegmenterInterface, path: Path, metadata: Mapping[str, str]
    ) -> None:
        with quiet(f"converting {path.name} to Core ML"):
            half = self.precision != "fp32"
            model = convert(program, deployment_target=self.deployment_target, half=half)
            if self.precision in COMPRESSED:
                model = compressed(model, self.precision)
            described = {**metadata, "precision": self.precision}
            write(model, path, described, (*program.inputs, *program.outputs))

    def load(
        self, path: Path, *, part: str = IMAGE_ENCODER, provider: str = "cpu", threads: int = 0, lean: bool = False
    ) -> Runner:
        """``threads`` and ``lean`` change nothing: neither runtime has such a choice."""
        if provider != "cpu":
            raise UsageError(
                f"--provider {provider}: which unit runs a Core ML package is Core ML's choice; leave it out"
            )
        return open_part(path)
