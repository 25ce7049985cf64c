from __future__ import annotations

import onnx_ir as ir

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import count_removed
from edgesam_deploy.passes.program import Program


@exact
def eliminate_dead(program: Program) -> int:
    """Remove nodes, initialisers, functions and opset imports that nobody reads.

    Why: ONNX Runtime executes dead nodes; a chain left behind by a fusion made one encoder 1.2 times slower. Exact.
    """
    removed = count_removed(program, ir.passes.common.RemoveUnusedNodesPass())
    ir.passes.common.RemoveUnusedFunctionsPass()(program.onnx)  # type: ignore[no-untyped-call]
    ir.passes.common.RemoveUnusedOpsetsPass()(program.onnx)
    return removed
