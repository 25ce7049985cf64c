"""DRAM traffic of compiled QNN parts beside the reference exporter's: python -m benchmarks.qnn_traffic.

Both are compiled by the same call (SM8650, fp16, optimisation 3), decoders with five points. The reference's decoder is
traced with fixed points, because a dynamic one does not compile, and without its identity Tile, which crashes the
compiler: as the reference writes it (opset 11, norms in pieces), and in opset 17 (norms whole), which moves much less
and is what our share is of. The figures come from the compiler's schematic: a compile-time estimate, no latency.
Writes benchmarks/results/qnn_traffic.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import tempfile
import warnings
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

import edgesam_deploy as ed
from benchmarks.reference_export import OPSETS, OUTPUTS, example_inputs, export_reference, reference_module
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.targets.qnn.compiler import Settings
from edgesam_deploy.targets.qnn.soc import DEFAULT_SOC, soc_named
from edgesam_deploy.targets.qnn.verdict import PartVerdict, compile_part

RESULTS = Path(__file__).parent / "results"
GOAL = 0.8
PARTS = {"encoder": "image_encoder", "decoder": "mask_decoder"}
POINTS = 5  # of the reference's decoder
WHOLE_NORMS = 17  # the first opset with LayerNormalization
OURS = "edgesam-deploy"
MIB = 2**20


def reference_part(model: Sam, part: str, path: Path, opset: int = OPSETS["decoder"]) -> Path:
    """The reference exporter's part as a file that the compiler takes."""
    if part == "encoder":
        return export_reference(model, "encoder", path)
    inputs = example_inputs(model, "decoder", POINTS)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every shape it reads: that is the reference's form
        torch.onnx.export(
            reference_module(model, "decoder"), tuple(inputs.values()), str(path), dynamo=False,
            opset_version=opset, input_names=list(inputs), output_names=OUTPUTS["decoder"],
        )  # fmt: skip
    proto = onnx.load(path)
    remove_identity_tiles(proto.graph)
    onnx.save(proto, path)
    return path


def remove_identity_tiles(graph: onnx.GraphProto) -> int:
    """Take out every Tile whose repeats are a constant of ones; how many there were."""
    known = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            known[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    found = [n for n in graph.node if n.op_type == "Tile" and np.all(known.get(n.input[1], np.zeros(1)) == 1)]
    for tile in found:
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name == tile.output[0]:
                    node.input[index] = tile.input[0]
        graph.node.remove(tile)
    return len(found)


def measured(verdict: PartVerdict) -> dict[str, Any]:
    """The figures of one compiled part."""
    if verdict.traffic is None:
        raise RuntimeError(f"the compiler made nothing of it: {verdict.end} {verdict.error} {verdict.off_npu}")
    nodes = {"npu_nodes": verdict.count("npu"), "cpu_nodes": verdict.count("cpu"), "partitions": verdict.partitions}
    return {**asdict(verdict.traffic), **nodes}


def measure(optimization: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Part -> whose -> figures."""
    settings = Settings(soc_named(DEFAULT_SOC), optimization)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = ed.load("edge_sam", seed=0)
        assert isinstance(model, Sam)
        bundle = ed.build(model, "qnn", folder / "ours", proof="off", optimization=optimization, points=POINTS)
        verdicts = bundle.read_json("compiler.json")["parts"]
        rows: dict[str, dict[str, dict[str, Any]]] = {}
        for part, own in PARTS.items():
            rows[part] = {}
            for opset in references(part):
                path = reference_part(model, part, folder / f"{part}{opset}.onnx", opset)
                compiled = compile_part(path, path.with_suffix(".context.onnx"), settings)
                rows[part][f"reference, opset {opset}"] = measured(compiled)
            keys = next(iter(rows[part].values()))
            rows[part][OURS] = {key: verdicts[own].get(key, verdicts[own]["traffic"].get(key)) for key in keys}
            print(part, rows[part], flush=True)
    return rows


def references(part: str) -> list[int]:
    """The opsets that the reference's part is compiled in."""
    return [OPSETS["encoder"]] if part == "encoder" else [OPSETS["decoder"], WHOLE_NORMS]


def ratio(row: dict[str, dict[str, Any]]) -> float:
    """Our DRAM bytes, read and written, over those of the reference that moves least."""
    dram = {who: cells["dram_read"] + cells["dram_write"] for who, cells in row.items()}
    return float(dram[OURS] / min(count for who, count in dram.items() if who != OURS))


def table(data: dict[str, Any]) -> str:
    lines = [
        "# DRAM traffic on Qualcomm's HTP, from the compiler's schematic", "",
        f"`{data['command']}`, {data['date']}, {data['machine']}; {DEFAULT_SOC}, fp16, optimisation "
        f"{data['optimization']}; " + ", ".join(f"{name} {number}" for name, number in data["versions"].items()) + ".",
        "MiB per run; a compile-time estimate in an undocumented format, no latency, not checked on silicon.", "",
        "| part | whose | DRAM read | DRAM written | VTCM read | VTCM written | operations | DMA | of reference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for part, row in data["parts"].items():
        share = ratio(row)
        verdict = f"{share:.2f}, goal {GOAL} {'reached' if share <= GOAL else 'not reached'}"
        for who, cells in row.items():
            sizes = [f"{cells[key] / MIB:.1f}" for key in ("dram_read", "dram_write", "vtcm_read", "vtcm_write")]
            counts = [str(cells["htp_operations"]), str(cells["dma_operations"])]
            last = verdict if who == OURS else ""
            lines.append(f"| {part} | {who} | " + " | ".join([*sizes, *counts, last]) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimization", type=int, default=3, choices=(1, 2, 3))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    parts = measure(args.optimization)
    data = {
        "command": "python -m benchmarks.qnn_traffic", "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {multiprocessing.cpu_count()} cores", "optimization": args.optimization,
        "versions": {name: version(name) for name in ("onnxruntime-qnn", "onnxruntime", "torch", "onnx")},
        "goal": GOAL, "parts": parts, "share_of_reference": {part: ratio(row) for part, row in parts.items()},
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "qnn_traffic.json").write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
    (args.out / "qnn_traffic.md").write_text(table(data))
    print(table(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
