from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import (
    add_initializer,
    add_node,
    constant,
    is_standard,
    replace_value,
    static_shape,
)
from edgesam_deploy.passes.program import Program

INTEGERS = {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.INT8, ir.DataType.UINT8}
DEPTH = 1 << 12  # beyond, the comparisons would cost more than the operator


@exact
def legalize_one_hot(program: Program) -> int:
    """Write OneHot as comparisons with 0, 1, 2, ... in fp32, which every runtime has.

        label ── OneHot(depth 4)        label ── Cast ── Reshape ── Equal([0, 1, 2, 3])     ── Or ── Cast
                                                                 ── Equal([-4, -3, -2, -1]) ──┘

    Why: label embeddings are exported as OneHot times a table; few NPUs know it, and none compares integers. Exact:
    fp32 holds every place below 2^24. A label outside of -depth..depth-1 is off everywhere, as ONNX says.
    """
    graph = program.onnx.graph
    return sum(_compare(graph, node) for node in list(graph) if is_standard(node, "OneHot"))


def _compare(graph: ir.Graph, node: ir.Node) -> bool:
    indices, result = node.inputs[0], node.outputs[0]
    depth, values, shape = constant(node.inputs[1]), constant(node.inputs[2]), static_shape(node.inputs[0])
    assert indices is not None
    if indices.dtype not in INTEGERS or depth is None or values is None or shape is None:
        return False
    size = int(depth.reshape(-1)[0])
    if not 0 < size <= DEPTH or result.dtype is None or values.dtype.kind != "f":
        return False
    attribute = node.attributes.get("axis")
    axis = (-1 if attribute is None else attribute.as_int()) % (len(shape) + 1)
    wide, name = (*shape[:axis], 1, *shape[axis:]), str(result.name)
    full = (*shape[:axis], size, *shape[axis:])
    places = np.arange(size, dtype=np.float32).reshape([-1] + [1] * (len(shape) - axis))
    target = add_initializer(graph, f"{name}_shape", np.array(wide, np.int64))
    number = add_node(node, "Cast", [indices], {"to": ir.DataType.FLOAT}, dtype=ir.DataType.FLOAT, shape=shape)
    number = add_node(node, "Reshape", [number, target], dtype=ir.DataType.FLOAT, shape=wide)
    found = []
    for word, wanted in (("places", places), ("places_from_end", places - size)):
        table = add_initializer(graph, f"{name}_{word}", wanted)
        found.append(add_node(node, "Equal", [number, table], dtype=ir.DataType.BOOL, shape=full))
    either = add_node(node, "Or", found, dtype=ir.DataType.BOOL, shape=full)
    hot = add_node(node, "Cast", [either], {"to": result.dtype}, shape=full)
    off, on = values.reshape(-1)
    if (off, on) != (0, 1):
        step = add_initializer(graph, f"{name}_step", np.array(on - off, values.dtype))
        base = add_initializer(graph, f"{name}_off", np.array(off, values.dtype))
        hot = add_node(node, "Add", [add_node(node, "Mul", [hot, step], shape=full), base], shape=full)
    done = replace_value(result, hot)
    graph.remove(node, safe=True)
    return done
