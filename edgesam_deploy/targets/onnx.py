"""ONNX for ONNX Runtime and for every tool that reads it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from numpy.typing import NDArray

from edgesam_deploy.contract import MASK_DECODER, Interface, SegmenterInterface
from edgesam_deploy.errors import BundleError, EdgeSamDeployError, MissingToolkit, UsageError
from edgesam_deploy.precision.calibration import encoder_inputs
from edgesam_deploy.precision.calibration_rows import CALIBRATION, SHIPPED, calibration_set
from edgesam_deploy.targets.base import Arrays, Bits, Runner, Target, option
from edgesam_deploy.targets.integration import write_integration
from edgesam_deploy.targets.openvino_runner import OPENVINO, OpenvinoRunner
from edgesam_deploy.toolkits import require

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgesam_deploy.model.configs import SamConfig
    from edgesam_deploy.model.cwsam.configs import CwsamConfig
    from edgesam_deploy.passes.engine import Pass
    from edgesam_deploy.passes.joint import JointPass
    from edgesam_deploy.passes.program import Program

IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}  # the oldest that each opset allows
EXTERNAL_ABOVE = 1 << 30  # bytes of weights; protobuf ends at 2 GiB, and many readers copy what is inside the file
log = logging.getLogger(__name__)
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class OnnxTarget(Target):
    """One .onnx file per part, standard operators only."""

    name: ClassVar[str] = "onnx"
    summary: ClassVar[str] = "ONNX opset 18 to 23 for ONNX Runtime; parity measured on the CPU here"
    extension: ClassVar[str] = "onnx"
    runtime: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnx-ir", "onnxscript", "onnxruntime")
    rules: ClassVar[str] = "onnxruntime_cpu"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8")

    opset: int = option(20, "ONNX operator set, 18 to 23.")
    precision: Literal["fp32", "int8"] = option(
        "fp32", "Type of weights and arithmetic; int8: the encoder's convolutions, the products that upscale masks."
    )
    calibration: str | None = option(None, "Folder of pictures for calibrated precisions. Default: shipped ones.")
    prompts_per_image: int = option(
        1, "How often a picture is prompted: where it pays, the encoder does what depends on the picture alone."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_opset()
        self._check_precision()
        self._check_calibration()
        if self.prompts_per_image < 1:
            raise UsageError(f"--prompts-per-image {self.prompts_per_image}: must be at least 1")
        if self.prompts_per_image > 1 and self.io != "contract":
            raise UsageError(
                f"--io {self.io} has no place for what the encoder computes; leave --prompts-per-image at 1"
            )

    def _check_opset(self) -> None:
        if self.opset not in IR_VERSIONS:
            raise UsageError(f"--opset {self.opset}: must be 18 to 23")

    def _check_precision(self) -> None:
        if self.precision not in self.precisions:
            raise UsageError(
                f"--precision {self.precision}: the {self.name} target has {' and '.join(self.precisions)}"
            )

    def _check_calibration(self) -> None:
        if self.precision == "int8":
            calibration_set(self.calibration)
        elif self.calibration is not None:
            raise UsageError(f"--calibration: --precision {self.precision} takes none; leave it out")

    def quantised(self, part: str) -> Bits | None:
        return Bits(8, 8) if self.precision == "int8" and part != MASK_DECODER else None

    def options(self) -> dict[str, Any]:
        chosen = super().options()
        if self.precision == "int8" and self.calibration is None:
            chosen["calibration"] = SHIPPED
        return chosen

    def joint_pipeline(self, config: SamConfig | CwsamConfig) -> tuple[JointPass, ...]:
        from edgesam_deploy.passes.aten import absorb_token_projections, canonicalize_given_queries
        from edgesam_deploy.passes.hoist_image_side import hoisting

        if self.prompts_per_image == 1:
            return ()
        return (hoisting(self.prompts_per_image, absorb_token_projections, canonicalize_given_queries),)

    def pipeline(self, config: SamConfig | CwsamConfig) -> tuple[Pass, ...]:
        from edgesam_deploy.passes import aten, onnx
        from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx

        return (
            aten.eliminate_identity,  # first: identity repeats and the tracer's assertions hide every pattern below
            aten.fold_constants,  # dense positions, relative-position tables: before anything is matched around them
            aten.legalize_moe_routing,
            aten.decompose_fft,  # after folding: the filter's mask is a constant then
            aten.fold_batch_norm,  # gives the depthwise branches plain weights, which merging needs
            aten.merge_parallel_convs,
            aten.fold_batch_norm,  # again: the DyT fork keeps one more norm behind the sum that has just been merged
            aten.fold_dyt_affine,  # DyT's scale and shift go into the next layer where nothing else reads them
            aten.absorb_pointwise_conv,  # before the resize becomes products, past which it does not see
            aten.legalize_bicubic,
            aten.eliminate_dead_rows,  # before absorbing, which pays the sooner the fewer rows there are
            aten.absorb_channel_offset,  # after folding: what is added to the pixels without a mask is a constant then
            aten.absorb_token_projections,  # after folding: dense positions are constants then
            aten.canonicalize_cross_attention,  # what absorbing does not pay for
            aten.canonicalize_given_queries,  # what hoisting left without a projection
            aten.decompose_softmax,  # the three before leave softmax over an axis in the middle
            aten.channel_last_upscaling,
            aten.limit_rank,  # before indices become slices, which would hide the cutting of q, k and v
            *((aten.hoist_positional_encoding,) if self.io == "edgesam-npu" else ()),
            aten.gather_to_slice,
            aten.decompose_spatial_mean,  # ONNX Runtime sums a whole map in one fp32 register
            aten.eliminate_dead,  # last at this level: the exporter would lower dead operators too
            lower_to_onnx(self.opset, IR_VERSIONS[self.opset]),
            onnx.legalize_cast_like,  # a Cast can be folded, a CastLike of a runtime value cannot
            onnx.canonicalize_reshape,  # before folding: it frees the shape arithmetic that folding then removes
            onnx.fold_constants,
            onnx.eliminate_identity,
            onnx.legalize_layer_norm,  # ONNX Runtime's fused Add + LayerNorm is slower than its parts
            onnx.eliminate_common,
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
        if self.precision == "int8":
            self._calibrate(programs, interface, next(iter(files.values())).parent)
        super().emit_parts(programs, interface, files, metadata)

    def _calibrate(self, programs: Sequence[Program], interface: Interface | SegmenterInterface, place: Path) -> None:
        """Calibrate and quantise, and say so in ``calibration.json``."""
        chosen = calibration_set(self.calibration)
        for reason in chosen.left_out:
            log.warning("left out of the calibration: %s", reason)
        rows = [encoder_inputs(interface, picture) for picture in chosen.pictures.values()]
        layers = self._quantise_parts(programs, rows)
        content = {"schema": 1, **chosen.to_json(), "samples": {programs[0].name: len(rows)}, "quantised": layers}
        (place / CALIBRATION).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

    def _quantise_parts(self, programs: Sequence[Program], rows: Sequence[Arrays]) -> dict[str, list[str]]:
        """8 bit for the first part, and for how the decoder upscales its masks: tokens and coordinates do not fit."""
        from edgesam_deploy.targets.onnx_int8 import quantise
        from edgesam_deploy.targets.onnx_int8_products import quantise_products

        layers = {programs[0].name: quantise(programs[0], rows)}
        decoders = [program for program in programs[1:] if program.name == MASK_DECODER]
        return layers | {program.name: quantise_products(program) for program in decoders}

    def emit(
        self, program: Program, interface: Interface | SegmenterInterface, path: Path, metadata: Mapping[str, str]
    ) -> None:
        import onnx
        import onnx_ir as ir

        from edgesam_deploy.onnx_file import write_graph
        from edgesam_deploy.targets.onnx_sam_io import attach_sam_outputs

        model = program.onnx
        if isinstance(interface, Interface) and interface.io == "sam" and program.name == MASK_DECODER:
            attach_sam_outputs(model, interface)
        for node in model.graph:
            node.metadata_props.clear()  # marks of passes
        model.metadata_props.clear()
        model.metadata_props.update(sorted(metadata.items()))
        model.producer_name, model.producer_version = "edgesam-deploy", metadata.get("edgesam_deploy_version", "")
        model.doc_string = None
        ir.passes.common.ShapeInferencePass(data_prop=True)(model)
        write_graph(model, path, external=_weight_bytes(model) > EXTERNAL_ABOVE)
        onnx.checker.check_model(path, full_check=True)

    def integrate(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        write_integration(folder, manifest)

    def load(
        self, path: Path, *, part: str = "", provider: str = "cpu", threads: int = 0, lean: bool = False
    ) -> Runner:
        return OpenvinoRunner(path, threads) if provider == OPENVINO else OnnxRunner(path, provider, threads, lean)


def _weight_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class OnnxRunner:
    """One .onnx file in ONNX Runtime, with its default session options.

    ``lean``: without the arena, which keeps what it has and grows by powers of two. Where a ViT's attention maps take
    gigabytes it doubles the peak (6.7 instead of 3.8 GB for ViT-B) and gains nothing.
    """

    def __init__(self, path: Path, provider: str = "cpu", threads: int = 0, lean: bool = False) -> None:
        ort = require("onnxruntime", "running an ONNX artifact")
        if provider not in PROVIDERS:
            raise UsageError(
                f"--provider {provider}: must be {' or '.join(PROVIDERS)}, or {OPENVINO} for the onnx and npu targets"
            )
        if PROVIDERS[provider] not in ort.get_available_providers():
            raise MissingToolkit(
                f"--provider {provider} needs an onnxruntime with {PROVIDERS[provider]} "
                f"(pip install onnxruntime-gpu); this one has {', '.join(ort.get_available_providers())}"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = options.enable_mem_pattern = not lean
        if threads:
            options.intra_op_num_threads = threads
        wanted = PROVIDERS[provider]
        try:  # enable_fallback: without it an error of the provider means another try on the CPU
            self.session = ort.InferenceSession(str(path), options, providers=[wanted], enable_fallback=0)
        except Exception as e:  # its error types derive from Exception alone
            first = str(e).splitlines()[0]
            raise BundleError(f"{path} cannot be loaded ({first}); edgesam-deploy verify tells if it is damaged") from e
        if self.session.get_providers()[0] != wanted:  # it was compiled in, and its libraries are not here
            raise MissingToolkit(
                f"--provider {provider}: this onnxruntime has {wanted}, but could not start it (a driver or a library "
                "such as cuDNN is missing) and would compute on the CPU"
            )
        self.description = f"onnxruntime {ort.__version__}, {wanted}"
        self.outputs = [out.name for out in self.session.get_outputs()]

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        try:
            values = self.session.run(self.outputs, dict(inputs))
        except Exception as e:  # its error types derive from Exception alone
            raise EdgeSamDeployError(f"the artifact failed in its runtime: {str(e).splitlines()[0]}") from e
        return dict(zip(self.outputs, values, strict=True))
