"""Core ML for iPhone, iPad and Mac: ML Programs, static shapes and fp16 by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgesam_deploy.contract import DYNAMIC, IMAGE_ENCODER, Interface, PartSpec, SegmenterInterface
from edgesam_deploy.errors import UsageError
from edgesam_deploy.targets.base import Bits, Half, Runner, Target, option
from edgesam_deploy.targets.coreml.compress import COMPRESSED, PALETTES, compressed
from edgesam_deploy.targets.coreml.convert import (
    DEPLOYMENT_TARGETS,
    EXACTLY,
    MOST_POINTS,
    convert,
    fine_side,
    leading_to,
)
from edgesam_deploy.targets.coreml.fine_maps import nodes_on_fine_maps
from edgesam_deploy.targets.coreml.mlpackage import write
from edgesam_deploy.targets.coreml.runner import open_part
from edgesam_deploy.targets.integration import write_integration
from edgesam_deploy.targets.quiet import quiet
from edgesam_deploy.targets.signatures import DECODE, parse_signatures, signature_name, signed

if TYPE_CHECKING:
    from edgesam_deploy.model.configs import SamConfig
    from edgesam_deploy.model.cwsam.configs import CwsamConfig
    from edgesam_deploy.passes.engine import Pass
    from edgesam_deploy.passes.program import Program

PRECISIONS = ("fp16", "fp32", *COMPRESSED)
EDGESAM_POINTS = 5  # what its apps send, padded
SINGLE = "model"
FUNCTIONS_SINCE = "iOS18"


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
    fine_maps: Literal["fp32", "fp16"] = option(
        "fp32",
        "Arithmetic on maps of a quarter of the picture's side and finer, where rounding costs most. fp16 leaves them "
        "to the Neural Engine.",
    )
    auto_mixed: bool = option(
        False, "Keep in fp32 the fewest operators without which fp16 leaves its bounds, found by emulation."
    )
    deployment_target: Literal["iOS16", "iOS17", "iOS18"] = option("iOS17", "Oldest system that must run it.")
    layout: Literal["nchw", "ane"] = option(
        "nchw", "ane: the decoder as the Neural Engine has it, channels first throughout, with --io edgesam-npu."
    )
    signatures: str | None = option(None, "Decoders for several numbers of slots, such as 1,2,5, weights shared.")
    single_file: bool = option(False, "One model.mlpackage with the functions encode and decode.")

    def __post_init__(self) -> None:
        if self.batch == DYNAMIC:
            raise UsageError("--batch dynamic: coreml has one prompt per call, or a fixed number; give a number")
        if self.io in ("sam", "edgesam-dyt"):
            raise UsageError(
                f"--io {self.io} has varying sizes or booleans, which Core ML's inputs do not; use --io contract"
            )
        if self.precision not in PRECISIONS:
            raise UsageError(f"--precision {self.precision}: must be {', '.join(PRECISIONS)}")
        if self.fine_maps not in ("fp32", "fp16"):
            raise UsageError(f"--fine-maps {self.fine_maps}: must be fp32 or fp16")
        if self.deployment_target not in DEPLOYMENT_TARGETS:
            raise UsageError(f"--deployment-target {self.deployment_target}: must be {', '.join(DEPLOYMENT_TARGETS)}")
        if self.auto_mixed and self.precision != "fp16":
            raise UsageError(f"--auto-mixed: --precision {self.precision} has nothing to mix; use --precision fp16")
        if self.layout not in ("nchw", "ane"):
            raise UsageError(f"--layout {self.layout}: must be nchw or ane")
        if self.layout == "ane" and self.io != "edgesam-npu":
            raise UsageError(
                "--layout ane: sines and cosines are for the host to compute, older Neural Engines have none; add "
                "--io edgesam-npu"
            )
        self._check_functions()
        super().__post_init__()

    def _check_functions(self) -> None:
        asked = "--single-file" if self.single_file else "--signatures" if self.signatures is not None else None
        if asked is not None and self.deployment_target != FUNCTIONS_SINCE:
            raise UsageError(
                f"{asked}: packages have several functions from {FUNCTIONS_SINCE} on; add --deployment-target "
                f"{FUNCTIONS_SINCE}, or leave it out"
            )
        if self.signatures is not None:
            if self.points is not None:
                raise UsageError("--signatures says how many slots the decoders have; leave --points out")
            parse_signatures(self.signatures)

    def require_toolkits(self) -> None:
        with quiet("importing coremltools"):  # which lists the parts of it that only a Mac has
            super().require_toolkits()

    def interface(self, config: SamConfig | CwsamConfig) -> Interface | SegmenterInterface:
        from edgesam_deploy.model.configs import SamConfig

        if self.layout == "ane" and not (isinstance(config, SamConfig) and config.mask_decoder is not None):
            raise UsageError("--layout ane is about decoders of prompts; this model has none: leave it and --io out")
        found = super().interface(config)
        if self.signatures is None:
            return found
        if isinstance(found, SegmenterInterface) or config.mask_decoder is None:
            raise UsageError("--signatures: this model takes no prompts; leave it out")
        return signed(found, self.signatures)

    def _promptable(self, *args: Any) -> Interface:
        points: int | None = None
        if self.signatures is not None:
            points = max(parse_signatures(self.signatures))
        elif self.points is None and self.io == "edgesam":
            points = EDGESAM_POINTS
        chosen: Any = self if points is None else replace(self, points=points, signatures=None)
        return Target._promptable(chosen, *args)

    @property
    def half(self) -> Half:
        return "none" if self.precision == "fp32" else "arithmetic"

    def quantised(self, part: str) -> Bits | None:
        weights = {"int8": 8, **PALETTES}.get(self.precision)
        return None if weights is None else Bits(weights, None)

    def islands(self, program: Program) -> frozenset[str]:
        side = None if self.fine_maps == "fp16" else fine_side(program)
        fine = frozenset() if side is None else nodes_on_fine_maps(program, side)
        return program.islands | leading_to(program, EXACTLY) | fine

    def pipeline(self, config: SamConfig | CwsamConfig) -> tuple[Pass, ...]:
        from edgesam_deploy.passes import aten

        return (
            aten.eliminate_identity,  # first: identity repeats and the tracer's assertions hide every pattern below
            *((aten.pixels_to_planes,) if self.embed_preprocess else ()),  # Core ML has pictures, not arrays of uint8
            aten.fold_constants,  # dense positions, relative-position tables: before anything is matched around them
            aten.legalize_moe_routing,
            aten.decompose_fft,  # after folding: the filter's mask is a constant then
            aten.fold_batch_norm,  # gives the depthwise branches plain weights, which merging needs
            aten.merge_parallel_convs,
            aten.fold_batch_norm,  # again: the DyT fork keeps one more norm behind the sum that has just been merged
            aten.fold_dyt_affine,
            aten.absorb_pointwise_conv,  # before the resize becomes products: one rounding of weights less
            aten.legalize_bicubic,  # MIL has no bicubic operator
            aten.eliminate_dead_rows,  # of the prompt's tokens, after the last attention
            aten.fuse_channel_norm,  # one operator, whose squares stay inside: spelled out they overflow in fp16
            aten.fuse_gelu,
            aten.limit_rank,  # Core ML's tensors have five axes at most
            *((aten.hoist_positional_encoding,) if self.io == "edgesam-npu" else ()),
            aten.merge_label_rows,
            aten.merge_parallel_heads,
            aten.fold_scale,
            *(self._for_ane() if self.layout == "ane" else ()),
            aten.eliminate_dead,  # last: the converter would lower dead operators too
        )

    def _for_ane(self) -> tuple[Pass, ...]:
        from edgesam_deploy.passes import aten

        return (
            aten.boolean_to_float,  # after the label rows are one comparison: labels are compared without booleans
            aten.tokens_to_maps,
            aten.legalize_matmul_rank,  # the masks' product, which is none of tokens
            aten.gather_to_slice,  # after rows have been taken out of maps, where they are slices already
            aten.decompose_layer_norm_2d,  # after the norms of tokens have become norms of channels
            aten.linear_to_conv,  # of transformers' encoders, whose tokens lie in rows and columns
        )

    def stored(self, part: PartSpec) -> PartSpec:
        """What the contract does not know: a picture is a pixel buffer in the package, which ``load`` makes of the
        contract's array, and a varying number of slots has a bound.
        """
        notes = {"image": "; in the package an RGB image", "labels": f"; 1 to {MOST_POINTS} slots"}
        said = {s: notes.get(s.role, "") if s.role == "image" or s.dynamic else "" for s in part.inputs}
        return replace(part, inputs=tuple(replace(s, meaning=s.meaning + note) for s, note in said.items()))

    def file(self, part: PartSpec) -> str:
        return f"{SINGLE if self.single_file else part.file}.{self.extension}"

    def emit_parts(
        self,
        programs: Sequence[Program],
        interface: Interface | SegmenterInterface,
        files: Mapping[str, Path],
        metadata: Mapping[str, Mapping[str, str]],
    ) -> None:
        for path in dict.fromkeys(files.values()):
            mine = [program for program in programs if files[program.name] == path]
            with quiet(f"converting {path.name} to Core ML"):
                models = {self._function(program): self._model(program) for program in mine}
                about = {**metadata[mine[0].name], "part": ", ".join(p.name for p in mine), "precision": self.precision}
                write(models, path, about, [spec for p in mine for spec in (*p.inputs, *p.outputs)])

    def emit(
        self, program: Program, interface: Interface | SegmenterInterface, path: Path, metadata: Mapping[str, str]
    ) -> None:
        self.emit_parts([program], interface, {program.name: path}, {program.name: metadata})

    def _function(self, program: Program) -> str:
        """``encode``, ``decode``, or ``decode_<N>`` where there are several."""
        name = signature_name(program.name, PartSpec("", program.inputs, program.outputs))
        return DECODE if name.startswith(DECODE) and self.signatures is None else name

    def _model(self, program: Program) -> Any:
        model = convert(
            program,
            deployment_target=self.deployment_target,
            half=self.precision != "fp32",
            fine_half=self.fine_maps == "fp16",
        )
        return compressed(model, self.precision) if self.precision in COMPRESSED else model

    def integrate(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        write_integration(folder, manifest)

    def load(
        self, path: Path, *, part: str = IMAGE_ENCODER, provider: str = "cpu", threads: int = 0, lean: bool = False
    ) -> Runner:
        """``threads`` and ``lean`` change nothing: neither runtime has such a choice."""
        if provider != "cpu":
            raise UsageError(
                f"--provider {provider}: which unit runs a Core ML package is Core ML's choice; leave it out"
            )
        return open_part(path, part)
