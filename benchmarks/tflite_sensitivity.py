"""What each kind of operator costs in 8 bit: an encoder's TFLite file quantised with some kinds left in fp32.

    python -m benchmarks.tflite_sensitivity out/edge_sam/tflite/encoder.tflite [--out benchmarks/results]

The file must be fp32, its image channels first. Embeddings are compared with the fp32 file's by relative L2, on a
photograph that ranges were calibrated with and on one that they were not; CPU milliseconds are those of one thread, the
least of three calls. Writes ``tflite_sensitivity.md`` and ``.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.interleaved import Machine, ended
from edgesam_deploy.contract import Interface
from edgesam_deploy.errors import UsageError
from edgesam_deploy.parity import shipped_pictures
from edgesam_deploy.passes.execute import relative_l2
from edgesam_deploy.precision.calibration import encoder_inputs
from edgesam_deploy.precision.calibration_rows import HELD_OUT, calibration_set
from edgesam_deploy.targets.quiet import quiet
from edgesam_deploy.targets.signatures import ENCODE
from edgesam_deploy.targets.tflite import flatbuffer
from edgesam_deploy.targets.tflite.quantize import CALIBRATED, LEFT, Precision, quantized
from edgesam_deploy.targets.tflite.toolkits import runtime

CALLS = 3
PRODUCTS = ("BATCH_MATMUL",)  # of two values: no kernel takes a constant on the left in 8 bit
TRIED: tuple[tuple[Precision, tuple[str, ...]], ...] = (
    ("fp16", ()),
    ("fp16", LEFT["fp16"]),
    ("dynamic-int8", PRODUCTS),
    ("dynamic-int8", (*PRODUCTS, "CONV_2D")),
    ("dynamic-int8", LEFT["dynamic-int8"]),
    ("int8", PRODUCTS),
    ("int8", (*PRODUCTS, "CONV_2D", "FULLY_CONNECTED")),
    ("int8", (*PRODUCTS, "DEPTHWISE_CONV_2D")),
    ("int8", (*PRODUCTS, "ADD", "MUL")),
    ("int8", LEFT["int8"]),
)
Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Row:
    """One file: relative L2 of its embeddings on a calibrated and on another photograph, megabytes, milliseconds."""

    precision: str
    left: tuple[str, ...]
    calibrated: float
    held_out: float
    megabytes: float
    cpu_ms: float

    def line(self) -> str:
        left = ", ".join(self.left) or "-"
        chosen = " (chosen)" if self.left == LEFT.get(self.precision) else ""  # type: ignore[call-overload]
        return (
            f"| {self.precision}{chosen} | {left} | {self.calibrated:.2e} | {self.held_out:.2e} "
            f"| {self.megabytes:.2f} | {self.cpu_ms:.0f} |"
        )


def embeddings(content: bytes, inputs: Sequence[Inputs]) -> tuple[list[NDArray[Any]], float]:
    """The embeddings for each input, and the CPU milliseconds of a call."""
    interpreter = runtime()[0](model_content=content, num_threads=1)
    runner = interpreter.get_signature_runner(ENCODE)
    found = [np.array(runner(**given)["image_embeddings"]) for given in inputs]
    spent = []
    for _ in range(CALLS):
        start = time.process_time()
        runner(**inputs[0])
        spent.append((time.process_time() - start) * 1e3)
    return found, min(spent)


def measure(content: bytes, interface: Interface) -> list[Row]:
    """A row per file, the fp32 one first."""
    known = [encoder_inputs(interface, picture) for picture in calibration_set(None).pictures.values()]
    held_out = encoder_inputs(interface, shipped_pictures()[HELD_OUT])
    tested = (known[0], held_out)
    expected, spent = embeddings(content, tested)
    rows = [Row("fp32", (), 0.0, 0.0, len(content) / 1e6, spent)]
    for precision, left in TRIED:
        print(f"{precision}, {', '.join(left)} left", file=sys.stderr)
        with quiet(f"quantising to {precision}"):
            samples = {ENCODE: known} if precision in CALIBRATED else {}
            file = flatbuffer.packed(flatbuffer.parse(quantized(content, precision, samples, left)))
        found, spent = embeddings(file, tested)
        errors = [relative_l2(a, b) for a, b in zip(expected, found, strict=True)]
        rows.append(Row(precision, left, *errors, len(file) / 1e6, spent))
    return rows


def report(rows: Sequence[Row], machine: Machine, what: str) -> str:
    """The Markdown file."""
    lines = [
        "# What stays in fp32 in a TFLite encoder\n",
        f"{machine}\n",
        f"{what}. Relative L2 of the embeddings against the fp32 file; milliseconds are to be read against each other "
        "only.\n",
        "| precision | left in fp32 | calibrated picture | other picture | MB | CPU ms |",
        "|---|---|---|---|---|---|",
        *(row.line() for row in rows),
    ]
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> None:
    content = args.encoder.read_bytes()
    model = flatbuffer.parse(content)
    described = json.loads(flatbuffer.read_metadata(content) or "{}")
    if ENCODE not in flatbuffer.signatures(model) or described.get("precision") != "fp32":
        raise UsageError(f"{args.encoder}: give an encoder.tflite that was built with --precision fp32")
    size = json.loads(described["contract"])["image_size"]
    rows = measure(content, Interface(image_size=size))
    machine = Machine.here(("ai-edge-litert", "ai-edge-quantizer", "numpy"))
    text = report(rows, machine, f"{described['model']}, {described['weights']}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "tflite_sensitivity.md").write_text(text)
    data = {"machine": asdict(machine), "model": described["model"], "rows": [asdict(row) for row in rows]}
    (args.out / "tflite_sensitivity.json").write_text(json.dumps(data, indent=2) + "\n")
    print(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("encoder", type=Path, help="an encoder.tflite in fp32")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return ended(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
