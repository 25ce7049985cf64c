from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import (
    add_initializer,
    add_node,
    integers,
    is_standard,
    opset,
    replace_value,
    static_shape,
)  # fmt: skip
from edgesam_deploy.passes.program import Program

log = logging.getLogger(__name__)
OPSET = 10  # from here on a Slice takes its bounds as inputs


@exact
def legalize_gather(program: Program) -> int:
    """Write a Gather of constant, evenly spaced places as the Slice that it is.

        tokens (1, 10, 256) ── Gather(axis 1, place 3) ── (1, 256)        Slice(3:4) ── Reshape ── (1, 256)

    Why: picking tokens is indexing in PyTorch and becomes Gather, which NPU compilers run on the host or not at all.
    Exact. A Gather of computed places, or of uneven ones, stays.
    """
    if opset(program) < OPSET:
        return 0
    return sum(_slice(program.onnx.graph, node) for node in list(program.onnx.graph) if is_standard(node, "Gather"))


def _slice(graph: ir.Graph, node: ir.Node) -> bool:
    data, places, result = node.inputs[0], integers(node.inputs[1]), node.outputs[0]
    before, after = static_shape(data), static_shape(result)
    if places is None or before is None or after is None or not places.size or places.ndim > 1:
        return False
    attribute = node.attributes.get("axis")
    axis = (0 if attribute is None else attribute.as_int()) % len(before)
    wanted = [int(p) % before[axis] for p in places.reshape(-1)]
    step = wanted[1] - wanted[0] if len(wanted) > 1 else 1
    if step < 1 or wanted != list(range(wanted[0], wanted[-1] + 1, step)):
        log.debug("legalize_gather: %s: places %s", result.name, wanted)
        return False
    bounds = {"starts": wanted[0], "ends": wanted[-1] + 1, "axes": axis, "steps": step}
    names = [add_initializer(graph, f"{result.name}_{key}", np.array([at], np.int64)) for key, at in bounds.items()]
    kept = [*before[:axis], len(wanted), *before[axis + 1 :]]
    value = add_node(node, "Slice", [data, *names], shape=kept)
    if places.ndim == 0:
        shape = add_initializer(graph, f"{result.name}_shape", np.array(after, np.int64))
        value = add_node(node, "Reshape", [value, shape], shape=after)
    done = replace_value(result, value)
    graph.remove(node, safe=True)
    return done
