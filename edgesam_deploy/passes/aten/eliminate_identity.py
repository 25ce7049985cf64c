from __future__ import annotations

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, same_shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
# identity whatever the arguments: this is inference, and values are never written in place
ALWAYS = {
    aten.alias.default, aten.clone.default, aten.contiguous.default, aten.detach.default, aten.detach_.default,
    aten.dropout.default, aten.lift_fresh_copy.default,
}  # fmt: skip
# identity when the shape stays as it was
BY_SHAPE = {
    aten.expand.default, aten.flatten.using_ints, aten.repeat.default, aten.repeat_interleave.self_int,
    aten.reshape.default, aten.tile.default, aten.unflatten.int, aten.view.default,
}  # fmt: skip
BY_DTYPE = {aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.type_as.default}
CHECKS = {aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten._assert_async.msg}


@exact
def eliminate_identity(program: Program) -> int:
    """Remove operators that return their input: casts to the same type, repeats by one, reshapes to the same shape.

        x ── repeat_interleave(1) ── expand(same) ── to(float32) ── y        x ── y

    Why: the reference decoder's two identity repeats become OneHot, Tile and a chain of dynamic shapes in ONNX, which
    TensorRT refuses and a 5-D Tile makes Qualcomm's compiler crash. Exact. The tracer's own assertions go too.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(*CHECKS):
            graph.graph.erase_node(node)
            sites += 1
        for node in graph.calls(*ALWAYS, *BY_SHAPE, *BY_DTYPE, aten.permute.default):
            source = node.args[0]
            if isinstance(source, Node) and _is_identity(node, source):
                graph.replace(node, source)
                sites += 1
    return sites


def _is_identity(node: Node, source: Node) -> bool:
    if node.target == aten.permute.default:
        dims = argument(node, 1, "dims")
        return list(dims) == list(range(len(dims)))
    return node.meta["val"].dtype == source.meta["val"].dtype and same_shape(node, source)
