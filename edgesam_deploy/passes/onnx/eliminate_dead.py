from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program


@exact
def eliminate_dead(program: Program) -> int:
    """Remove nodes, initialisers, functions and opset imports that nobody reads.

    Why: ONNX Runtime executes dead nodes; a chain left behind by a fusion made one encoder 1.2 times slower. Exact.
    """
    model = program.onnx
    before = _size(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    return before - _size(model)


def _size(model: ir.Model) -> int:
    return len(model.graph) + len(model.graph.initializers) + len(model.functions) + len(model.opset_imports)
