from __future__ import annotations

import onnx_ir as ir

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program


@exact
def legalize_cast_like(program: Program) -> int:
    """Write CastLike as the Cast that it is, since the type of its second operand is known.

        CastLike(x, y: float32) ── z        Cast(x, to=float32) ── z

    Why: PyTorch's exporter leaves it beside scalars; vendor compilers do not know it. Exact.
    """
    graph, sites = program.onnx.graph, 0
    for node in graph:
        like = node.inputs[1] if node.op_type == "CastLike" else None
        if like is None or like.dtype is None:
            continue
        cast = ir.node("Cast", [node.inputs[0]], {"to": like.dtype}, name=node.name)
        cast.outputs[0].dtype, cast.outputs[0].shape = like.dtype, node.outputs[0].shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], [cast], node.outputs, cast.outputs)
        sites += 1
    return sites
