"""What TensorRT's parser is known to refuse, or to answer with a shape tensor, although its table has the operator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

REFUSED = {
    "OneHot": "its depth becomes a shape tensor, which the SAM decoders' builds end at",
    "NonZero": "the size of its result depends on the data",
    "If": "both branches are built, and must have the same shapes",
    "Loop": "its body runs on the host's word",
    "Scan": "its body runs on the host's word",
}
SHAPES = {"Reshape": 1, "Expand": 1, "Tile": 1, "ConstantOfShape": 0, "Range": 0, "Slice": 1, "Resize": 2, "Pad": 1}


def hazards(path: Path) -> list[str]:
    """One line per hazard of an .onnx file, naming the node or the input; none is good.

    Operators of ``REFUSED``, inputs whose values become shapes, and tables of int64 that are no shapes.
    """
    model = onnx.load(path, load_external_data=False)
    return [*_refused(model.graph), *_shape_inputs(model.graph)]


def _refused(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        if node.op_type in REFUSED:
            yield f"{node.op_type} {node.name or node.output[0]}: {REFUSED[node.op_type]}"


def _shape_inputs(graph: onnx.GraphProto) -> Iterator[str]:
    """Inputs from which a shape is computed by their values; ``Shape`` of an input is none."""
    origin = {value.name: value.name for value in graph.input}
    for node in graph.node:
        if node.op_type in ("Shape", "Size"):
            continue
        position = SHAPES.get(node.op_type)
        shaping = node.input[position:] if position is not None else []
        for name in shaping:
            if name in origin:
                yield f"input {origin[name]} becomes a shape in {node.op_type} {node.name or node.output[0]}"
        found = next((origin[name] for name in node.input if name in origin), None)
        if found is not None:
            origin.update(dict.fromkeys(node.output, found))
