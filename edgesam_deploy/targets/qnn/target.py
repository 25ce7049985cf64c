"""QNN context binaries: what Qualcomm's compiler makes of the portable ONNX, beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgesam_deploy.contract import DYNAMIC, IMAGE_ENCODER, MASK_DECODER, Interface, SegmenterInterface
from edgesam_deploy.errors import EdgeSamDeployError, UnsupportedOperators, UsageError
from edgesam_deploy.passes.islands import MARK
from edgesam_deploy.precision.calibration import encoder_inputs
from edgesam_deploy.precision.calibration_rows import CALIBRATION, SHIPPED, calibration_set, decoder_rows
from edgesam_deploy.targets.base import Arrays, Bits, Half, Runner, Target, option
from edgesam_deploy.targets.onnx import OnnxRunner, OnnxTarget
from edgesam_deploy.targets.qnn.compiler import Limits, Settings
from edgesam_deploy.targets.qnn.soc import DEFAULT_SOC, Soc, soc_named

if TYPE_CHECKING:
    from edgesam_deploy.model.configs import SamConfig
    from edgesam_deploy.model.cwsam.configs import CwsamConfig
    from edgesam_deploy.passes.engine import Pass
    from edgesam_deploy.passes.program import Program
    from edgesam_deploy.targets.qnn.verdict import PartVerdict, Row

log = logging.getLogger(__name__)
SCHEMA = 1
VERDICT = "compiler.json"
ACTIVATION_BITS = {"w8a8": 8, "w8a16": 16}
PRECISIONS = ("fp16", *ACTIVATION_BITS)


@dataclass(frozen=True)
class QnnTarget(OnnxTarget):
    """Per part: ``encoder.onnx`` (float, or quantised), which runs anywhere, and ``encoder.qnn.onnx``, whose one node
    holds the binary for the chip. ``compiler.json`` is the compiler's verdict on both parts.
    """

    name: ClassVar[str] = "qnn"
    summary: ClassVar[str] = "QNN context binaries for the NPU of Snapdragon chips; parity measured on the HTP emulator"
    extension: ClassVar[str] = "qnn.onnx"
    toolkits: ClassVar[tuple[str, ...]] = (*OnnxTarget.toolkits, "onnxruntime", "onnxruntime_qnn")
    runtime: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnxruntime_qnn")
    tools: ClassVar[tuple[str, ...]] = (*OnnxTarget.tools, "onnxruntime-qnn")
    rules: ClassVar[str] = "qnn_htp"
    slow_to_run: ClassVar[bool] = True
    keeps_layers: ClassVar[bool] = True
    unmeasured: ClassVar[str] = "a run on the HTP emulator takes minutes: edgesam-deploy check BUNDLE runs it"

    precision: Literal["fp16", "w8a8", "w8a16"] = option(  # type: ignore[assignment]
        "fp16", "fp16; w8a8 or w8a16: 8-bit weights, 8- or 16-bit activations."
    )
    soc: str = option(DEFAULT_SOC, "Snapdragon chip by name or number: SM8450, SM8550, SM8650, SM8750, SM8850.")
    optimization: int = option(3, "How hard the compiler tries: 1, 2 or 3; 1 for a quick look.")
    vtcm_mb: int = option(0, "MB of the NPU's own memory to plan with. 0: all of it.")
    calibration: str | None = option(None, "Folder of pictures for calibrated precisions. Default: shipped ones.")
    keep: str = option("", "Layers that are not quantised: names of quantization.json, with commas between.")
    external_binary: bool = option(False, "The binary in a file beside encoder.qnn.onnx, not inside of it.")
    cpu_fallback: bool = option(False, "Accept a part that the NPU does not run whole.")
    compile_seconds: int = option(1800, "Seconds that compiling one part may take.")
    compile_memory_mb: int = option(8192, "MB of memory that the compiler may take.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimization not in (1, 2, 3):
            raise UsageError(f"--optimization {self.optimization}: must be 1, 2 or 3")
        if not 0 <= self.vtcm_mb <= 64:
            raise UsageError(f"--vtcm-mb {self.vtcm_mb}: must be 0 (all of it) to 64")
        if min(self.compile_seconds, self.compile_memory_mb) < 1:
            raise UsageError("--compile-seconds and --compile-memory-mb must be at least 1")
        for name in ("points", "batch"):
            if getattr(self, name) == DYNAMIC:
                raise UsageError(f"--{name} {DYNAMIC}: the NPU's graphs are static; give a number")
        if self.io in ("edgesam", "edgesam-dyt", "sam"):
            raise UsageError(f"--io {self.io} has dynamic shapes; use contract or edgesam-npu for {self.name}")
        self.chip()

    def _check_precision(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"--precision {self.precision}: must be {', '.join(PRECISIONS)}")

    def _check_calibration(self) -> None:
        if self.precision not in ACTIVATION_BITS:
            for name in ("calibration", "keep"):
                if getattr(self, name):
                    raise UsageError(f"--{name}: --precision {self.precision} takes none; leave it out")
            return
        if self.io != "contract" or self.mask_input:
            raise UsageError(
                f"--precision {self.precision} is calibrated with --io contract and without --mask-input; use fp16"
            )
        calibration_set(self.calibration)

    def chip(self) -> Soc:
        """The chip asked for. Raises UsageError for one that is not known, or that has no fp16."""
        return soc_named(self.soc)

    @property
    def half(self) -> Half:
        return "arithmetic" if self.precision == "fp16" else "none"

    @property
    def instead_of_half(self) -> str:
        return "--precision w8a16, whose ranges are calibrated"

    def quantised(self, part: str) -> Bits | None:
        return Bits(8, ACTIVATION_BITS[self.precision]) if self.precision in ACTIVATION_BITS else None

    def rehearsal(self) -> Target:
        return PortableQnn(**{f.name: getattr(self, f.name) for f in fields(self)})

    def options(self) -> dict[str, Any]:
        chosen = super().options()
        if self.precision in ACTIVATION_BITS and self.calibration is None:
            chosen["calibration"] = SHIPPED
        return chosen

    def pipeline(self, config: SamConfig | CwsamConfig) -> tuple[Pass, ...]:
        from edgesam_deploy.passes import aten, onnx

        dropped = {
            aten.channel_last_upscaling.name,  # transposed convolutions in place move 1.8 times less through DRAM
            aten.absorb_channel_offset.name,  # another constant of 4,096 positions to read from DRAM at every prompt
            onnx.legalize_layer_norm.name,  # fused or in parts is all one to the compiler
        }
        if self.precision in ACTIVATION_BITS:  # a softmax in parts has ranges that 8 bit cannot hold
            dropped |= {step.name for step in (aten.absorb_token_projections, aten.canonicalize_cross_attention)}
            dropped.add(aten.decompose_softmax.name)
        return tuple(step for step in super().pipeline(config) if step.name not in dropped)

    def judged(self, path: Path) -> Path:
        return path.with_name(path.name.removesuffix(self.extension) + OnnxTarget.extension)

    def emit_parts(
        self,
        programs: Sequence[Program],
        interface: Interface | SegmenterInterface,
        files: Mapping[str, Path],
        metadata: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Portable ONNX, quantised where asked for; then the binaries and the compiler's verdict.

        Raises UnsupportedOperators, which names them, where the NPU does not take a whole part.
        """
        from edgesam_deploy.targets.qnn.verdict import compile_part

        portable = self._emit_portable(programs, interface, files, metadata)
        verdicts = {}
        for part, model in portable.items():
            verdicts[part] = compile_part(model, files[part], self._settings(), self._limits())
            self._gate(part, verdicts[part])
        place = next(iter(files.values())).parent
        _write(place / VERDICT, self._report(verdicts, files))

    def _emit_portable(
        self,
        programs: Sequence[Program],
        interface: Interface | SegmenterInterface,
        files: Mapping[str, Path],
        metadata: Mapping[str, Mapping[str, str]],
    ) -> dict[str, Path]:
        """The portable ONNX of every part; returns the files by part."""
        portable = {program.name: self.judged(files[program.name]) for program in programs}
        kept = {p.name: [str(node.name) for node in p.onnx.graph if MARK in node.metadata_props] for p in programs}
        for program in programs:
            self.emit(program, interface, portable[program.name], metadata[program.name])
        if self.precision in ACTIVATION_BITS:
            self._quantise(portable, interface, kept)
        return portable

    def _settings(self) -> Settings:
        quantised = self.precision in ACTIVATION_BITS
        return Settings(self.chip(), self.optimization, self.vtcm_mb, not self.external_binary, quantised)

    def _limits(self) -> Limits:
        return Limits(self.compile_seconds, self.compile_memory_mb)

    def _quantise(
        self,
        portable: Mapping[str, Path],
        interface: Interface | SegmenterInterface,
        kept: Mapping[str, Sequence[str]],
    ) -> None:
        from edgesam_deploy.targets.qnn.quantize import quantise

        chosen = calibration_set(self.calibration)
        for reason in chosen.left_out:
            log.warning("left out of the calibration: %s", reason)
        fed = {name: encoder_inputs(interface, picture) for name, picture in chosen.pictures.items()}
        rows: dict[str, list[Arrays]] = {next(iter(portable)): list(fed.values())}
        if MASK_DECODER in portable:
            assert isinstance(interface, Interface)
            encoder = OnnxRunner(portable[IMAGE_ENCODER])  # float still
            pairs = ((chosen.pictures[name], encoder(inputs)) for name, inputs in fed.items())
            rows[MASK_DECODER] = [row for pair in pairs for row in decoder_rows(interface, *pair)]
        bits = ACTIVATION_BITS[self.precision]
        floating = {part: quantise(path, rows[part], bits, kept[part]) for part, path in portable.items()}
        content = {"samples": {part: len(r) for part, r in rows.items()}, "float_nodes": floating}
        place = next(iter(portable.values())).parent
        _write(place / CALIBRATION, {"schema": SCHEMA, **chosen.to_json(), **content})

    def _gate(self, part: str, verdict: PartVerdict) -> None:
        if verdict.end != "compiled":
            self._refuse(part, verdict)
        if verdict.off_npu and not self.cpu_fallback:
            raise UnsupportedOperators(
                f"{part}: the NPU of {self.soc} does not run {_listed(verdict.off_npu)}; no bundle was written; "
                "--cpu-fallback accepts that"
            )

    def _refuse(self, part: str, verdict: PartVerdict) -> None:
        where = f"{part} for {self.soc}"
        if verdict.off_npu:
            raise UnsupportedOperators(f"{where}: {_listed(verdict.off_npu)}; no bundle was written")
        remedy = {
            "out of time": "allow more with --compile-seconds, or use --optimization 1",
            "out of memory": "allow more with --compile-memory-mb, or use --optimization 1",
            "killed": "somebody, or the system when it was short of memory, ended it; try again",
        }.get(verdict.end, "try --optimization 1, or another --soc")
        raise EdgeSamDeployError(
            f"the QNN compiler was stopped on {where}: {verdict.end} ({verdict.error}); no bundle was written; {remedy}"
            if verdict.end in ("out of time", "out of memory", "killed")
            else f"the QNN compiler {verdict.end} {where}: {verdict.error}; no bundle was written; {remedy}"
        )

    def _report(self, verdicts: Mapping[str, PartVerdict], files: Mapping[str, Path]) -> dict[str, Any]:
        from edgesam_deploy.targets.qnn.runner import compiler_version

        chip = self.chip()
        parts = {
            part: {**verdict.to_json(), "context_bytes": _size(files[part]), "file": files[part].name}
            for part, verdict in verdicts.items()
        }
        return {
            "schema": SCHEMA, "soc": {f.name: getattr(chip, f.name) for f in fields(chip)}, "parts": parts,
            "compiler": compiler_version(next(iter(files.values()))), "optimization": self.optimization,
        }  # fmt: skip

    def load(
        self, path: Path, *, part: str = "", provider: str = "cpu", threads: int = 0, lean: bool = False
    ) -> Runner:
        from edgesam_deploy.targets.qnn.runner import QnnRunner

        if not path.name.endswith(QnnTarget.extension):
            return OnnxRunner(path, provider, threads, lean)  # the portable form, which runs anywhere
        if provider != "cpu":
            raise UsageError(f"--provider {provider}: here a QNN binary runs in the emulator on the CPU; use cpu")
        return QnnRunner(path)


@dataclass(frozen=True)
class PortableQnn(QnnTarget):
    """The portable ONNX alone, quantised as for the compiler, and run by ONNX Runtime: seconds instead of minutes."""

    extension: ClassVar[str] = OnnxTarget.extension
    slow_to_run: ClassVar[bool] = False
    unmeasured: ClassVar[str] = ""

    def judged(self, path: Path) -> Path:
        return path

    def emit_parts(
        self,
        programs: Sequence[Program],
        interface: Interface | SegmenterInterface,
        files: Mapping[str, Path],
        metadata: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._emit_portable(programs, interface, files, metadata)


def _listed(rows: Sequence[Row], most: int = 5) -> str:
    found = [_described(row, name) for row in rows for name in row.nodes]
    rest = len(found) - most
    return "; ".join(found[:most]) + (f"; and {rest} more" if rest > 0 else "")


def _described(row: Row, name: str) -> str:
    rank = "?" if row.rank is None else row.rank
    return f"{row.operator} {name} ({row.dtype or 'type unknown'}, rank {rank}): {row.reason}"


def _size(context: Path) -> int:
    """Bytes of the binary, in the ONNX file or beside it."""
    return sum(path.stat().st_size for path in context.parent.glob(f"{context.stem}*"))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
