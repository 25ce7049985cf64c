from __future__ import annotations

import logging
from math import prod

import onnx_ir as ir

from edgesam_deploy.passes.engine import Pass, exact
from edgesam_deploy.passes.onnx.graph import (
    add_initializer,
    add_node,
    constant,
    is_standard,
    replace_value,
    static_shape,
)
from edgesam_deploy.passes.program import Program

log = logging.getLogger(__name__)


def split_large_ops(limit: int) -> Pass:
    """The pass that lets no MatMul, Gemm or Conv have a weight or a result of more than ``limit`` bytes."""

    def split(program: Program) -> int:
        """Split products and convolutions that do not fit a device's memory along their output channels.

            x ── Conv(W: 512 channels) ── y        x ── Conv(W[:256]) ── Concat ── y
                                                   x ── Conv(W[256:]) ──┘

        Why: NPUs hold a weight or a result in a memory of a few MB and refuse an operator that does not fit, where its
        halves do. Exact: no sum is cut. Grouped convolutions and products of two activations stay. Site = an operator.
        """
        graph = program.onnx.graph
        return sum(_split(graph, n, limit) for n in list(graph) if is_standard(n, "MatMul", "Gemm", "Conv"))

    split.__name__ = "split_large_ops"
    return exact(split)


def _split(graph: ir.Graph, node: ir.Node, limit: int) -> bool:
    weight, result = constant(node.inputs[1]), node.outputs[0]
    if weight is None or weight.ndim < 2:
        return False
    cut = _weight_axis(node)  # the output channels in the weight
    axis = 1 if node.op_type == "Conv" else -1  # and in the result
    shape, channels = static_shape(result), weight.shape[cut]
    largest = max(weight.nbytes, 0 if shape is None or result.dtype is None else prod(shape) * result.dtype.itemsize)
    if largest <= limit or channels == 1:
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None:
        return False
    group = node.attributes.get("group")
    if (group is not None and group.as_int() != 1) or (node.op_type == "MatMul" and weight.ndim != 2):
        log.debug("split_large_ops: %s of %d bytes is grouped or batched", result.name, largest)
        return False
    step = max(int(limit / (largest / channels)), 1)
    parts = []
    for start in range(0, channels, step):
        piece = slice(start, start + step)
        own = weight[(slice(None),) * cut + (piece,)] if cut else weight[piece]
        inputs = [node.inputs[0], add_initializer(graph, f"{result.name}_weight", own)]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            inputs.append(_bias(graph, node, piece))
        size = own.shape[cut]
        part = None if shape is None else [*shape[:1], size, *shape[2:]] if axis == 1 else [*shape[:-1], size]
        parts.append(add_node(node, node.op_type, inputs, dict(node.attributes.items()), shape=part))
    done = replace_value(result, add_node(node, "Concat", parts, {"axis": axis}, shape=shape))
    graph.remove(node, safe=True)
    return done


def _weight_axis(node: ir.Node) -> int:
    transposed = node.attributes.get("transB")
    return 0 if node.op_type == "Conv" or (transposed is not None and transposed.as_int() == 1) else 1


def _bias(graph: ir.Graph, node: ir.Node, piece: slice) -> ir.Value:
    """The piece's part of a bias; one that is the same for all channels is shared."""
    bias = node.inputs[2]
    array = constant(bias)
    assert bias is not None
    assert array is not None
    if array.ndim == 0 or array.shape[-1] == 1:
        return bias
    return add_initializer(graph, f"{node.outputs[0].name}_bias", array[..., piece])
