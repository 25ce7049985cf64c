from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import add_initializer, constant, count_removed, dims
from edgesam_deploy.passes.program import Program


@exact
def canonicalize_reshape(program: Program) -> int:
    """Give every Reshape a constant shape: 0 copies a dynamic dimension, one -1 is worked out by the runtime.

        Shape ── Gather ── Concat ── Reshape(x, .)        Reshape(x, [0, 0, 8, 32])

    Why: with a dynamic number of points or prompts the exporter computes each shape at run time, some 70 nodes in the
    decoder, and shape tensors are what TensorRT stumbles over. Exact: the traced symbols say which dimension is which.
    """
    graph, sites = program.onnx.graph, 0
    for node in graph:
        if node.op_type != "Reshape" or constant(node.inputs[1]) is not None:
            continue
        shape = _constant_shape(dims(node.inputs[0]), dims(node.outputs[0]))
        if shape is not None:
            node.attributes.pop("allowzero", None)  # the exporter sets it where 0 could be a size; here it means "copy"
            node.replace_input_with(1, add_initializer(graph, f"{node.outputs[0].name}_shape", shape))
            sites += 1
    count_removed(program, common.RemoveUnusedNodesPass())
    return sites


def _constant_shape(before: list[str] | None, after: list[str] | None) -> NDArray[np.int64] | None:
    if before is None or after is None or "0" in after:  # a size of 0 would be read as "copy"
        return None
    shape = [int(d) if d.isdigit() else None for d in after]
    unknown = [axis for axis, size in enumerate(shape) if size is None]
    # prefer to copy: -1 is needed for the one dimension that the reshape itself makes
    left = [axis for axis in unknown if axis >= len(before) or before[axis] != after[axis]]
    if len(unknown) == 1:
        left = unknown
    if len(left) > 1:
        return None
    return np.array(
        [(-1 if axis in left else 0) if size is None else size for axis, size in enumerate(shape)], np.int64
    )
