from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import add_initializer, add_node, is_standard, replace_value
from edgesam_deploy.passes.program import Program


@exact
def legalize_reciprocal(program: Program) -> int:
    """Divide 1 by what a Reciprocal reads.

        x ── Reciprocal ── y        1 ── Div x ── y

    Why: the exporter writes 1 / sqrt(x) with it, RKNN-Toolkit2 lists it as not supported and other NPU compilers do not
    list it at all; each of them has Div. Exact.
    """
    sites = 0
    for node in list(program.onnx.graph):
        if is_standard(node, "Reciprocal") and node.outputs[0].dtype is not None:
            _rewrite(program.onnx.graph, node)
            sites += 1
    return sites


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    result = node.outputs[0]
    assert result.dtype is not None
    one = add_initializer(graph, "one", np.array(1, result.dtype.numpy()))
    shape = None if result.shape is None else list(result.shape)
    replace_value(result, add_node(node, "Div", [one, node.inputs[0]], shape=shape))
    graph.remove(node, safe=True)
