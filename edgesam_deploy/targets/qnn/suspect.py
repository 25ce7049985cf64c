"""Which node makes the compiler crash: pieces of the graph are compiled, each in a process of its own."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import onnx

from edgesam_deploy.targets.qnn.compiler import Limits, Settings, compile_onnx

SEARCH_SECONDS = 300.0


def find_suspect(model: Path, settings: Settings, limits: Limits, seconds: float = SEARCH_SECONDS) -> str | None:
    """The name of the last node of the shortest beginning of the graph that crashes the compiler.

    Halves what is left at each step: n nodes take log2(n) compilations, at the lowest optimisation if that crashes too.
    None where the graph's beginnings do not crash, or ``seconds`` have passed.
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load(model))
    deadline = time.monotonic() + seconds
    quick = replace(settings, optimization=1)

    def crashes(count: int, chosen: Settings) -> bool:
        with tempfile.TemporaryDirectory(prefix="qnn_") as folder:
            piece = Path(folder) / "piece.onnx"
            onnx.save(beginning(graph, count), piece)
            left = max(deadline - time.monotonic(), 1.0)
            allowed = replace(limits, seconds=min(limits.seconds, left))
            return compile_onnx(piece, Path(folder) / "context.onnx", chosen, allowed).end == "crashed"

    total = len(graph.graph.node)
    chosen = next((s for s in dict.fromkeys((quick, settings)) if crashes(total, s)), None)
    if chosen is None:
        return None
    works, fails = 0, total
    while fails - works > 1:
        if time.monotonic() > deadline:
            return None
        middle = (works + fails) // 2
        works, fails = (works, middle) if crashes(middle, chosen) else (middle, fails)
    node = graph.graph.node[fails - 1]
    return str(node.name or node.output[0])


def beginning(model: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """The first ``count`` nodes of a model, types inferred; what others would have read becomes its outputs."""
    graph = model.graph
    nodes, rest = graph.node[:count], graph.node[count:]
    made = {name for node in nodes for name in node.output if name}
    read = {name for node in nodes for name in node.input}
    wanted = {name for node in rest for name in node.input} | {value.name for value in graph.output}
    types = {value.name: value for value in (*graph.value_info, *graph.output)}
    piece = onnx.helper.make_graph(
        nodes,
        graph.name,
        [value for value in graph.input if value.name in read],
        [types[name] for node in nodes for name in node.output if name in made & wanted and name in types],
        [weight for weight in graph.initializer if weight.name in read],
        value_info=[value for value in graph.value_info if value.name in made - wanted],
    )
    return onnx.helper.make_model(piece, opset_imports=model.opset_import, ir_version=model.ir_version)
