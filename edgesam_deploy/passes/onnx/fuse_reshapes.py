from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import add_initializer, add_node, is_standard, replace_value, static_shape
from edgesam_deploy.passes.program import Program

SHAPERS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


@exact
def fuse_reshapes(program: Program) -> int:
    """Write one Reshape for a chain of operators that only give another shape, or none where the first comes back.

        (1, 256, 64, 64) ── Unsqueeze (1, 1, 256, 64, 64) ── Reshape (1, 256, 64, 64)        nothing

    Why: `repeat_interleave(x, 1)` leaves such a pair around the Tile that `eliminate_identity` removes, and its rank of
    5 is one that NPU compilers refuse. Exact: the elements keep their order. A dynamic shape stays.
    """
    graph, sites = program.onnx.graph, 0
    for node in list(graph):
        if node.graph is graph and _follows_another(node):
            sites += _fuse(graph, node)
    return sites


def _follows_another(node: ir.Node) -> bool:
    source = node.inputs[0] if node.inputs else None
    producer = None if source is None else source.producer()
    return (
        is_standard(node, *SHAPERS)
        and producer is not None
        and producer.graph is node.graph
        and is_standard(producer, *SHAPERS)
    )


def _fuse(graph: ir.Graph, node: ir.Node) -> bool:
    source = node.inputs[0]
    assert source is not None
    producer = source.producer()
    assert producer is not None
    first, wanted = producer.inputs[0], static_shape(node.outputs[0])
    if first is None or wanted is None or source.is_graph_output():
        return False
    if static_shape(first) == wanted and first.dtype == node.outputs[0].dtype and replace_value(node.outputs[0], first):
        graph.remove(node, safe=True)
    else:
        if 0 in wanted:
            return False  # in a Reshape's shape it means another thing
        shape = add_initializer(graph, f"{node.outputs[0].name}_shape", np.array(wanted, np.int64))
        fused = add_node(node, "Reshape", [first, shape], shape=wanted)
        if not replace_value(node.outputs[0], fused):
            return False
        graph.remove(node, safe=True)
    if not source.uses():
        graph.remove(producer, safe=True)
    return True
