"""TFLite for LiteRT on Android, on boards and in browsers: builtin operators only, fp32 to 8 bit."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgesam_deploy.contract import (
    DYNAMIC,
    IMAGE_ENCODER,
    MASK_DECODER,
    Interface,
    PartSpec,
    SegmenterInterface,
)
from edgesam_deploy.errors import UsageError
from edgesam_deploy.precision.calibration import encoder_inputs
from edgesam_deploy.precision.calibration_rows import CALIBRATION, SHIPPED, calibration_set
from edgesam_deploy.targets.base import Arrays, Bits, Half, Target, option
from edgesam_deploy.targets.quiet import quiet
from edgesam_deploy.targets.signatures import parse_signatures, signature_name, signed
from edgesam_deploy.targets.tflite import flatbuffer
from edgesam_deploy.targets.tflite.convert import convert, stored
from edgesam_deploy.targets.tflite.quantize import (
    CALIBRATED,
    PRECISIONS,
    Precision,
    Samples,
    in_layout,
    quantized,
    samples_for,
    with_outputs,
)
from edgesam_deploy.targets.tflite.runner import TfliteRunner
from edgesam_deploy.targets.tflite.toolkits import resolve_converter

if TYPE_CHECKING:
    from edgesam_deploy.model.configs import SamConfig
    from edgesam_deploy.model.cwsam.configs import CwsamConfig
    from edgesam_deploy.passes.engine import Pass
    from edgesam_deploy.passes.program import Program

log = logging.getLogger(__name__)
SINGLE = "model"
LARGE_MEAN = 128 * 128  # pixels: from here on a mean is taken in two steps, each of which is an operator


@dataclass(frozen=True)
class TfliteTarget(Target):
    """encoder.tflite and decoder.tflite, or one model.tflite with signatures ``encode`` and ``decode_<N>``."""

    name: ClassVar[str] = "tflite"
    summary: ClassVar[str] = "TFLite for LiteRT, builtin operators only; parity measured on the CPU here"
    extension: ClassVar[str] = "tflite"
    toolkits: ClassVar[tuple[str, ...]] = ("torch", "ai_edge_litert", "ai_edge_quantizer")
    runtime: ClassVar[tuple[str, ...]] = ("ai_edge_litert",)
    tools: ClassVar[tuple[str, ...]] = ("litert-torch", "litert-converter", "ai-edge-litert", "ai-edge-quantizer")
    rules: ClassVar[str] = "tflite_builtin"

    precision: Literal["fp32", "fp16", "dynamic-int8", "int8", "w8a16"] = option(
        "fp32",
        "Type of weights and arithmetic. On tflite, int8 is dynamic for the decoder; w8a16 "
        "is for NPUs and slow on a CPU.",
    )
    layout: Literal["nchw", "nhwc"] = option(
        "nchw",
        "Axes of the image input (tflite: nchw or nhwc), or ane (coreml): a decoder as the Neural Engine has it.",
    )
    signatures: str | None = option(None, "Decoders for several numbers of slots, such as 1,2,5, weights shared.")
    single_file: bool = option(False, "One file with the signatures (coreml: functions) encode and decode_<N>.")
    calibration: str | None = option(None, "Folder of pictures for calibrated precisions. Default: shipped ones.")

    def __post_init__(self) -> None:
        if self.points == DYNAMIC:
            raise UsageError(
                "--points dynamic: TFLite has static shapes; give a number, whose empty slots are excluded exactly, or "
                "several decoders in one file with --signatures 1,2,5"
            )
        if self.batch == DYNAMIC:
            raise UsageError("--batch dynamic: TFLite has static shapes; give a number")
        if self.signatures is not None and self.points is not None:
            raise UsageError("--signatures says how many slots the decoders have; leave --points out")
        if self.io in ("sam", "edgesam-dyt"):
            raise UsageError(f"--io {self.io} sends or takes varying sizes; use --io contract, or --target onnx")
        if self.precision not in PRECISIONS:
            raise UsageError(f"--precision {self.precision}: must be {', '.join(PRECISIONS)}")
        if self.layout not in ("nchw", "nhwc"):
            raise UsageError(f"--layout {self.layout}: must be nchw or nhwc")
        if self.calibration is not None and self.precision not in CALIBRATED:
            raise UsageError(f"--calibration: --precision {self.precision} takes none; leave it out")
        if self.single_file and self.precision in CALIBRATED:
            raise UsageError(
                f"--precision {self.precision} treats encoder and decoder differently: leave --single-file out, "
                "or take dynamic-int8"
            )
        if self.precision in CALIBRATED:
            calibration_set(self.calibration)
        if self.signatures is not None:
            parse_signatures(self.signatures)
        super().__post_init__()

    def require_toolkits(self) -> None:
        with quiet("importing the converter"):  # which greets at length
            resolve_converter()
            super().require_toolkits()

    def interface(self, config: SamConfig | CwsamConfig) -> Interface | SegmenterInterface:
        found = super().interface(config)
        if self.signatures is None:
            return found
        if isinstance(found, SegmenterInterface) or config.mask_decoder is None:
            raise UsageError("--signatures: this model takes no prompts; leave it out")
        return signed(found, self.signatures)

    def _promptable(self, *args: Any) -> Interface:
        points: int | None = None
        if self.signatures is not None:
            points = parse_signatures(self.signatures)[0]
        elif self.points is None and self.io == "edgesam":
            points = 5  # what its apps send, padded
        chosen = self if points is None else _with_points(self, points)
        return Target._promptable(chosen, *args)

    def pipeline(self, config: SamConfig | CwsamConfig) -> tuple[Pass, ...]:
        from edgesam_deploy.passes import aten
        from edgesam_deploy.passes.aten.decompose_spatial_mean import mean_by_rows

        return (
            aten.eliminate_identity,  # first: identity repeats and the tracer's assertions hide every pattern below
            aten.fold_constants,  # dense positions, relative-position tables: before anything is matched around them
            aten.legalize_moe_routing,
            aten.decompose_fft,  # after folding: the filter's mask is a constant then; no complex numbers in TFLite
            aten.fold_batch_norm,  # gives the depthwise branches plain weights, which merging needs
            aten.merge_parallel_convs,  # the converter folds norms but merges no branches: 69 operators in EdgeSAM
            aten.fold_batch_norm,  # again: the DyT fork keeps one more norm behind the sum that has just been merged
            aten.fold_dyt_affine,
            aten.absorb_pointwise_conv,  # before the resize becomes products: the neck's projection, 0.9 % of the time
            aten.legalize_bicubic_channel_last,  # the converter's own form has 16 GATHER_ND and 22 TRANSPOSE
            aten.eliminate_dead_rows,  # of the prompt's tokens, after the last attention
            aten.limit_rank,  # before indices become slices, which would hide the cutting of q, k and v
            *((aten.hoist_positional_encoding,) if self.io == "edgesam-npu" else ()),
            aten.merge_label_rows,
            aten.channel_last_upscaling,  # 0.8 of the decoder's time: TRANSPOSE_CONV is slow in XNNPACK
            aten.gather_to_slice,  # before the batch axis goes: a slice keeps the axis that an index would remove
            aten.eliminate_unit_batch,  # the converter reshapes around every product of four axes
            mean_by_rows(LARGE_MEAN),  # XNNPACK sums a whole map in one fp32 register: off by 1.6e-4 without it
            aten.decompose_layer_norm_fp32,  # after it: the norms are on (T, C) then
            aten.eliminate_dead,  # last: the converter would lower dead operators too
        )

    @property
    def half(self) -> Half:
        return "weights" if self.precision == "fp16" else "none"

    def options(self) -> dict[str, Any]:
        chosen = super().options()
        if self.precision in CALIBRATED and self.calibration is None:
            chosen["calibration"] = SHIPPED
        return chosen

    def quantised(self, part: str) -> Bits | None:
        if self.precision in ("fp32", "fp16"):
            return None
        return Bits(8, 16 if self.precision == "w8a16" else 8)

    def file(self, part: PartSpec) -> str:
        return f"{SINGLE if self.single_file else part.file}.{self.extension}"

    def stored(self, part: PartSpec) -> PartSpec:
        if self.layout == "nchw":
            return part
        return replace(part, inputs=tuple(stored(spec) for spec in part.inputs))

    def emit_parts(
        self,
        programs: Sequence[Program],
        interface: Interface | SegmenterInterface,
        files: Mapping[str, Path],
        metadata: Mapping[str, Mapping[str, str]],
    ) -> None:
        specs = interface.parts(promptable=MASK_DECODER in files)
        rows = self._calibration_rows(interface, next(iter(files.values())).parent)
        for path in dict.fromkeys(files.values()):
            mine = {p.name: p for p in programs if files[p.name] == path}
            named = {signature_name(part, specs[part]): program for part, program in mine.items()}
            content = convert(named, channel_last=self.layout == "nhwc")
            flatbuffer.check_builtin(flatbuffer.parse(content), path.name)
            precision = self._precision_of(*mine)
            samples = {key: samples_for(program.inputs, rows) for key, program in named.items()}
            path.write_bytes(self._finished(content, path.name, precision, samples, metadata[next(iter(mine))]))
            if IMAGE_ENCODER in mine and precision == "w8a16":
                rows = with_outputs(content, rows)  # the decoder is calibrated on what fp32 gives it

    def _calibration_rows(self, interface: Interface | SegmenterInterface, place: Path) -> list[Arrays]:
        """The encoder's inputs for each picture, which ``calibration.json`` names; none where nothing is calibrated."""
        if self.precision not in CALIBRATED:
            return []
        chosen = calibration_set(self.calibration)
        for reason in chosen.left_out:
            log.warning("left out of the calibration: %s", reason)
        content = {"schema": 1, **chosen.to_json(), "samples": len(chosen.pictures)}
        (place / CALIBRATION).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        return [in_layout(encoder_inputs(interface, picture), self.layout) for picture in chosen.pictures.values()]

    def _precision_of(self, *parts: str) -> Precision:
        """Of a file: 8-bit ranges are for maps; one scale for pixel coordinates and their sines ruins a decoder."""
        is_decoder = all(part.startswith(MASK_DECODER) for part in parts)
        return "dynamic-int8" if self.precision == "int8" and is_decoder else self.precision

    def _finished(
        self, content: bytes, name: str, precision: Precision, samples: Samples, metadata: Mapping[str, str]
    ) -> bytes:
        if precision != "fp32":
            with quiet(f"quantising {name} to {precision}"):
                content = quantized(content, precision, samples)
        model = flatbuffer.parse(content)
        flatbuffer.check_builtin(model, name, wide=precision == "w8a16")  # its biases are INT64
        described = {**metadata, "precision": precision, "layout": self.layout}
        flatbuffer.attach(
            model,
            json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False),
            f"{metadata['model']}, {name}, edgesam-deploy",
        )
        return flatbuffer.packed(model)

    def emit(
        self, program: Program, interface: Interface | SegmenterInterface, path: Path, metadata: Mapping[str, str]
    ) -> None:
        self.emit_parts([program], interface, {program.name: path}, {program.name: metadata})

    def integrate(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        from edgesam_deploy.targets.integration import write_integration  # which reads this package's signatures

        write_integration(folder, manifest)

    def load(
        self, path: Path, *, part: str = IMAGE_ENCODER, provider: str = "cpu", threads: int = 0, lean: bool = False
    ) -> TfliteRunner:
        """``lean`` changes nothing: LiteRT plans one arena for all of a signature's tensors."""
        if provider != "cpu":
            raise UsageError(f"--provider {provider}: TFLite files run on the cpu here")
        return TfliteRunner(path, part, threads)


def _with_points(target: TfliteTarget, points: int) -> Any:
    return replace(target, points=points, signatures=None)
