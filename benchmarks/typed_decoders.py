"""What typing costs a decoder: ours by cast_to_half against NVIDIA's AutoCast, on photographs, at the real size.

    python -m benchmarks.typed_decoders [MODEL ...] [--pictures 1] [--out benchmarks/results]

Each decoder is fed with the fp32 features of the first shipped photographs and a prompt of each kind, and compared with
its own fp32 form: in ONNX Runtime as it runs such files on a CPU, which rounds little but the weights, and with every
16-bit value rounded. AutoCast's rows are there where nvidia-modelopt is installed. Weights are seeded. Writes
``typed_decoders.md`` and ``.json``. Exit code 0 where ours in fp16 has 50 dB for masks, 45 for scores and no flip.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

import edgesam_deploy as ed
from benchmarks.interleaved import Machine
from edgesam_deploy.capture import capture
from edgesam_deploy.contract import MASK_DECODER
from edgesam_deploy.model.predictor import SamPredictor
from edgesam_deploy.parity import shipped_pictures
from edgesam_deploy.passes import onnx as passes
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import Arrays, relative_l2
from edgesam_deploy.passes.program import Program
from edgesam_deploy.passes.rounding import rounded
from edgesam_deploy.precision.calibration_rows import decoder_rows
from edgesam_deploy.targets import make_target

MODELS = ("edge_sam", "edge_sam_dyt", "edge_sam_dyt_hq", "sam_hq_vit_tiny", "vit_b")
ROUNDED = "every 16-bit value rounded"
GOALS = {"masks": 50.0, "scores": 45.0}


@dataclass(frozen=True)
class Row:
    """The worst figures over all prompts. flips: prompts for which another mask has the best score."""

    model: str
    typing: str
    executed: str
    masks_db: float
    scores_db: float
    flips: int
    prompts: int

    @property
    def reached(self) -> bool:
        return self.masks_db >= GOALS["masks"] and self.scores_db >= GOALS["scores"] and not self.flips


def measure(model: ed.Sam, pictures: int) -> Iterator[Row]:
    """Rows of one model."""
    target = make_target("tensorrt", precision="fp32")
    interface = target.interface(model.config)
    rows = list(_prompts(model, pictures))
    (decoder,) = (program for program in capture(model, interface) if program.name == MASK_DECODER)
    single = Engine("off").run(decoder, target.pipeline(model.config))
    expected = _run(single.onnx, rows)
    for typing, typed in _typed(single):
        for executed, body in ((ROUNDED, rounded(typed)), ("as ONNX Runtime runs it", typed)):
            yield _row(model.name, typing, executed, expected, _run(body, rows))


def _prompts(model: ed.Sam, pictures: int) -> Iterator[Arrays]:
    interface, predictor = make_target("tensorrt").interface(model.config), SamPredictor(model)
    names = [spec.name for spec in interface.parts()["image_encoder"].outputs]
    for picture in list(shipped_pictures().values())[:pictures]:
        features = predictor.set_image(picture)
        values = features if isinstance(features, tuple) else (features,)
        fed = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        yield from map(dict, decoder_rows(interface, picture, fed))


def _typed(single: Program) -> Iterator[tuple[str, ir.Model]]:
    for typing, fused in (("fp16", False), ("fp16, attention fused", True)):
        yield typing, Engine("off").run(single, (passes.cast_to_half("fp16", fused_attention=fused),)).onnx
    try:
        from modelopt.onnx.autocast import convert_to_mixed_precision
    except ImportError:
        print("nvidia-modelopt is not installed: no rows of AutoCast", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        ir.save(single.onnx, path)
        made = convert_to_mixed_precision(onnx_path=str(path), low_precision_type="fp16", keep_io_types=True)
        yield "AutoCast fp16", ir.from_proto(onnx.shape_inference.infer_shapes(made))


def _run(model: ir.Model, rows: Sequence[Arrays]) -> list[Arrays]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return [dict(zip(names, session.run(names, row), strict=True)) for row in rows]


def _row(model: str, typing: str, executed: str, expected: Sequence[Arrays], found: Sequence[Arrays]) -> Row:
    pairs = list(zip(expected, found, strict=True))
    masks, scores = (
        min(-20 * float(np.log10(max(relative_l2(a[name], b[name]), 1e-12))) for a, b in pairs) for name in GOALS
    )
    flips = sum(int(a["scores"].argmax() != b["scores"].argmax()) for a, b in pairs)
    return Row(model, typing, executed, round(masks, 1), round(scores, 1), flips, len(pairs))


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        f"| {r.model} | {r.typing} | {r.executed} | {r.masks_db} | {r.scores_db} | {r.flips} of {r.prompts} |"
        for r in rows
    ]
    head = "| decoder | typing | executed | masks, dB | scores, dB | best-mask flips |\n|---|---|---|---|---|---|"
    return "\n".join([head, *lines]) + "\n"


def main(given: Sequence[str] | None = None) -> int:
    command = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    command.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    command.add_argument("--pictures", type=int, default=1)
    command.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = command.parse_args(given)
    rows: list[Row] = []
    for name in arguments.models:
        model = ed.load(name, seed=0)
        assert isinstance(model, ed.Sam)
        for row in measure(model, arguments.pictures):
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    machine = Machine.here()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "typed_decoders.md").write_text(f"{__doc__}\n{table(rows)}\n{machine}\n")
    content = {"rows": [asdict(row) for row in rows], "goals": GOALS, "machine": asdict(machine)}
    (arguments.out / "typed_decoders.json").write_text(json.dumps(content, indent=2) + "\n")
    return 0 if all(row.reached for row in rows if row.typing.startswith("fp16")) else 1


if __name__ == "__main__":
    sys.exit(main())
