"""The ONNX-level passes for scripts that edit their graphs with onnx-graphsurgeon, as those for TensorRT often do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from edgesam_deploy.optimizer import as_program, legalization, run_passes
from edgesam_deploy.passes.engine import ProofMode
from edgesam_deploy.toolkits import require

if TYPE_CHECKING:
    from onnx_graphsurgeon import Graph


def optimize_graph(graph: Graph, target: str = "onnx", *, proof: ProofMode = "fast") -> Graph:
    """A graph rewritten by a target's ONNX-level passes, proved as ``edgesam-deploy optimize`` proves them.

        graph = gs.import_onnx(onnx.load("decoder.onnx"))
        onnx.save(gs.export_onnx(optimize_graph(graph)), "out.onnx")

    ``graph`` is left as it is. Raises UnknownName for a target without such passes, PassError for a pass that leaves
    its bound, MissingToolkit without onnx-graphsurgeon.
    """
    gs = require("onnx_graphsurgeon", "rewriting graphs of onnx-graphsurgeon")
    pipeline = legalization(target)
    model = ir.from_proto(gs.export_onnx(graph))
    program, _ = run_passes(as_program(graph.name or "graph", model, {}), pipeline, proof)
    rewritten: Graph = gs.import_onnx(ir.to_proto(program.onnx))
    return rewritten
