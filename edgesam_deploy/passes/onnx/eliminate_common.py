from __future__ import annotations

from onnx_ir.passes import common

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import count_removed
from edgesam_deploy.passes.program import Program


@exact
def eliminate_common(program: Program) -> int:
    """Compute once what is computed twice from the same inputs; store once what is stored twice.

        x ── Unsqueeze ── a,  x ── Unsqueeze ── b        x ── Unsqueeze ── a = b

    Why: traced code repeats itself, and so do small constants such as shapes. Exact. onnx_ir's own passes.
    """
    # the constants first: nodes that differ only by which copy of a shape they read are then the same
    constants = program.onnx.graph.initializers
    before = len(constants)
    common.DeduplicateInitializersPass(size_limit=1024)(program.onnx)
    return before - len(constants) + count_removed(program, common.CommonSubexpressionEliminationPass())
