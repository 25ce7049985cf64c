from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import constant, count_removed, dims, replace_value
from edgesam_deploy.passes.program import Program

BY_SHAPE = {"Expand", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}


@exact
def eliminate_identity(program: Program) -> int:
    """Remove nodes that return their input: Identity, casts to the same type, shapes that stay as they were.

        x ── Identity ── Cast(float32) ── Expand(same) ── y        x ── y

    Why: they cost a copy on some runtimes, hide patterns from every fusion, and a 5-D identity Tile makes Qualcomm's
    compiler crash. Exact.
    """
    for node in program.onnx.graph:
        if _is_identity(node):
            (source, *_) = node.inputs
            assert source is not None  # all of them require it
            replace_value(node.outputs[0], source)
    return count_removed(program, common.RemoveUnusedNodesPass())


def _is_identity(node: ir.Node) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type == "Cast":
        return node.attributes["to"].as_int() == node.inputs[0].dtype  # type: ignore[union-attr]
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        return perm is not None and list(perm.as_ints()) == sorted(perm.as_ints())
    if node.op_type == "Tile":
        repeats = constant(node.inputs[1])
        return repeats is not None and bool((repeats == 1).all())
    if node.op_type in BY_SHAPE:
        before, after = dims(node.inputs[0]), dims(node.outputs[0])
        return before is not None and before == after
    return False
