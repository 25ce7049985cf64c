"""Strongly typed ONNX for TensorRT, with the script that builds its engines, or the engines themselves."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgesam_deploy.contract import Interface, SegmenterInterface
from edgesam_deploy.errors import EdgeSamDeployError, MissingToolkit, UnsupportedOperators, UsageError
from edgesam_deploy.targets.base import Arrays, Half, Runner, option
from edgesam_deploy.targets.onnx import IR_VERSIONS, OnnxTarget
from edgesam_deploy.targets.tensorrt import build_engine
from edgesam_deploy.targets.tensorrt.recipe import parse_range, readme_section, write_recipe

if TYPE_CHECKING:
    from edgesam_deploy.model.configs import SamConfig
    from edgesam_deploy.model.cwsam.configs import CwsamConfig
    from edgesam_deploy.passes.engine import Pass
    from edgesam_deploy.passes.program import Program

log = logging.getLogger(__name__)
TABLES = {10: "tensorrt_10", 11: "tensorrt_11"}
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
LEAST_OPSET = {"bf16": 22, "int8": 19}  # Conv takes bfloat16; the scale of a Quantize may be fp16


@dataclass(frozen=True)
class TensorrtTarget(OnnxTarget):
    """Per part one .onnx file whose every value has the type it is computed in; inputs and outputs are fp32.

    ``build_engine.py`` with ``build_engine.json`` makes engines of them on the device; ``--engine`` makes them here.
    """

    name: ClassVar[str] = "tensorrt"
    summary: ClassVar[str] = "strongly typed ONNX for TensorRT 10 and 11, and what builds its engines on the device"
    rules: ClassVar[str] = "tensorrt_10"
    holds_islands: ClassVar[bool] = True
    room: ClassVar[float] = (
        0.6  # lowering makes further values, each rounded: 4.0e-3 emulated became 5.0e-3 in the file
    )
    keeps_layers: ClassVar[bool] = True

    precision: Literal["fp32", "fp16", "bf16", "int8"] = option(  # type: ignore[assignment]
        "fp16",
        "fp32, fp16, bf16 (norms, softmax, sums and positions keep fp32); int8: the encoder's layers, else fp16.",
    )
    auto_mixed: bool = option(
        False, "Keep in fp32 the fewest operators without which fp16 leaves its bounds, found by emulation."
    )
    opset: int = option(0, "ONNX operator set, 18 to 23; 0: 20, or 22 for bf16, which Conv has from there on.")
    keep: str = option("", "Layers that are not quantised: names of quantization.json, with commas between.")
    trt: int = option(10, "TensorRT major, 10 or 11: whose operator table, whose trtexec line.")
    engine: bool = option(False, "Build the engines here as well; needs tensorrt and a GPU.")
    attention: Literal["fp32", "fused"] = option(
        "fp32", "Softmax of attention in fp32, or in half between its products, which TensorRT makes one kernel of."
    )
    points_profile: str = option("1,6,64", "With --points dynamic: least, usual and most slots.")
    batch_profile: str = option("1,1,64", "With --batch dynamic: least, usual and most prompts per call.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trt not in TABLES:
            raise UsageError(f"--trt {self.trt}: must be 10 or 11")
        if self.attention not in ("fp32", "fused"):
            raise UsageError(f"--attention {self.attention}: must be fp32 or fused")
        if self.auto_mixed and self.precision != "fp16":
            raise UsageError(f"--auto-mixed: --precision {self.precision} has nothing to mix; use --precision fp16")
        if self.io == "sam":
            raise UsageError("--io sam: orig_im_size becomes a shape, which breaks optimisation profiles; use contract")
        self._ranges()

    def _check_opset(self) -> None:
        least = LEAST_OPSET.get(self.precision, 18)
        if self.opset == 0:
            object.__setattr__(self, "opset", max(least, 20))  # so that the manifest names the real one
        super()._check_opset()
        if self.opset < least:
            raise UsageError(f"--opset {self.opset}: --precision {self.precision} needs {least} or newer")

    def _check_precision(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"--precision {self.precision}: must be {', '.join(PRECISIONS)}")

    def _check_calibration(self) -> None:
        if self.keep and self.precision != "int8":
            raise UsageError(f"--keep: --precision {self.precision} takes none; leave it out")
        super()._check_calibration()

    def _ranges(self) -> dict[str, tuple[int, int, int]]:
        return {
            "num_points": parse_range("points-profile", self.points_profile),
            "batch": parse_range("batch-profile", self.batch_profile),
        }

    @property
    def half(self) -> Half:
        return "arithmetic" if self.precision in ("fp16", "int8") else "none"

    def islands(self, program: Program) -> frozenset[str]:
        from edgesam_deploy.targets.tensorrt.single import single_names

        return program.islands | single_names(program, fused_attention=self.attention == "fused")

    @property
    def rule_table(self) -> str:
        return TABLES[self.trt]

    @property
    def measured_on(self) -> str:
        return "cuda" if self.engine else "cpu"

    def require_toolkits(self) -> None:
        super().require_toolkits()
        if self.engine:
            from edgesam_deploy.targets.tensorrt.engine import require_gpu

            require_gpu("--engine")

    def pipeline(self, config: SamConfig | CwsamConfig) -> tuple[Pass, ...]:
        from edgesam_deploy.passes import aten, onnx
        from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx

        fused = self.attention == "fused"
        kind: Literal["fp16", "bf16"] | None = None  # int8 is typed after calibration, which runs the float program
        if self.precision in ("fp16", "bf16"):
            kind = self.precision
        return (
            aten.eliminate_identity,  # first: identity repeats and the tracer's assertions hide every pattern below
            aten.fold_constants,
            aten.legalize_moe_routing,  # no NonZero, no indices that depend on data
            aten.decompose_fft,
            aten.fold_batch_norm,
            aten.merge_parallel_convs,
            aten.fold_batch_norm,  # again: the DyT fork keeps one more norm behind the sum that has just been merged
            aten.fold_dyt_affine,
            aten.legalize_bicubic,  # its table has no cubic Resize
            aten.fuse_channel_norm,  # one operator that keeps fp32 inside, where the pieces overflow fp16 at 256
            aten.limit_rank,  # attention in four axes, the form that TensorRT documents for its fused kernel
            *((aten.hoist_positional_encoding,) if self.io == "edgesam-npu" else ()),
            aten.gather_to_slice,
            aten.decompose_spatial_mean,  # short sums, whatever kernel takes them
            aten.eliminate_dead,  # last at this level: the exporter would lower dead operators too
            lower_to_onnx(self.opset, IR_VERSIONS[self.opset]),
            onnx.legalize_cast_like,  # a Cast can be folded, a CastLike of a runtime value cannot
            onnx.canonicalize_reshape,  # before folding: it frees the shape arithmetic that folding then removes
            onnx.fold_constants,
            onnx.eliminate_identity,
            onnx.eliminate_common,
            onnx.narrow_int64_data,
            onnx.fold_constants,
            *((onnx.cast_to_half(kind, fused_attention=fused),) if kind is not None else ()),
            onnx.eliminate_dead,
            onnx.canonicalize_names,  # last: names are given to what is left
        )

    def emit_parts(
        self,
        programs: Sequence[Program],
        interface: Interface | SegmenterInterface,
        files: Mapping[str, Path],
        metadata: Mapping[str, Mapping[str, str]],
    ) -> None:
        """The typed ONNX, ``build_engine.json``, and with ``--engine`` the engines.

        Raises UnsupportedOperators, which names them, for what TensorRT's parser is known to end at.
        """
        from edgesam_deploy.targets.tensorrt.hazards import hazards

        super().emit_parts(programs, interface, files, metadata)
        for part, path in files.items():
            found = hazards(path)
            if found:
                raise UnsupportedOperators(f"{part}: {'; '.join(found[:5])}; no bundle was written")
        place = next(iter(files.values())).parent
        parts = interface.parts(promptable=len(programs) > 1)
        write_recipe(place, interface, parts, self._ranges(), major=self.trt, precision=self._precisions(parts))
        if self.engine:
            self._build_engines(place)

    def _precisions(self, parts: Mapping[str, Any]) -> dict[str, str]:
        """By part: prompts are few numbers, and neither coordinates nor the masks made of them fit 8 bit."""
        rest = "fp16" if self.precision == "int8" else self.precision
        return {part: self.precision if index == 0 else rest for index, part in enumerate(parts)}

    def _quantise_parts(self, programs: Sequence[Program], rows: Sequence[Arrays]) -> dict[str, list[str]]:
        """8 bit for the first part's layers, half for the rest of it and for the others."""
        from edgesam_deploy.passes.onnx import cast_to_half
        from edgesam_deploy.targets.tensorrt.quantize import quantise

        layers = {programs[0].name: quantise(programs[0], rows)}
        for program in programs:
            cast_to_half("fp16", fused_attention=self.attention == "fused")(program)
        return layers

    def _build_engines(self, place: Path) -> None:
        try:
            build_engine.build_engines(place, place / build_engine.FOLDER)
        except build_engine.EngineError as e:
            kind = MissingToolkit if e.exit_code == MissingToolkit.exit_code else EdgeSamDeployError
            raise kind(f"{e}; no bundle was written") from e

    def integrate(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        super().integrate(folder, manifest)
        shutil.copyfile(build_engine.__file__, folder / "build_engine.py")
        recipe = json.loads((folder / build_engine.RECIPE).read_text())
        card = folder / "README.md"
        card.write_text(card.read_text() + readme_section(recipe))

    def load(
        self, path: Path, *, part: str = "", provider: str = "cpu", threads: int = 0, lean: bool = False
    ) -> Runner:
        if provider == "cuda":
            from edgesam_deploy.targets.tensorrt.engine import EngineRunner

            return EngineRunner(path)
        from edgesam_deploy.targets.tensorrt.typed import TypedOnnxRunner

        return TypedOnnxRunner(path, provider, threads, lean)
