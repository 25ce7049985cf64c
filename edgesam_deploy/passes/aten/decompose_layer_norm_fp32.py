from __future__ import annotations

import logging

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.decompose_layer_norm import affine
from edgesam_deploy.passes.aten.graph import AtenGraph, argument
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)


@exact
def decompose_layer_norm_fp32(program: Program) -> int:
    """Write layer norm as the fewest operators, for runtimes that compute in fp32 and have none.

        x ── layer_norm(w, b, eps) ── y        d = x - mean x
                                               x ── d ── d * rsqrt(linear(d d, 1 / C, eps)) ── * w ── + b ── y

    Why: litert-torch writes its own form of batch norm on flattened rows, 15 operators with five reshapes, 150 of the
    379 in EdgeSAM's mask decoder; these are 8: the second mean is a linear layer with one row and eps for a bias.
    Squares the centred values as they are, which fp16 survives up to 256 only: where the runtime may compute in fp16,
    take ``decompose_layer_norm``. Exact up to the order of fp32 sums. Norms over one axis; others stay.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(aten.layer_norm.default):
            source = node.args[0]
            assert isinstance(source, Node)
            size = argument(node, 1, "normalized_shape")
            if len(size) != 1:
                log.debug("decompose_layer_norm_fp32: %s normalises several axes", node.name)
                continue
            row = graph.add_constant("mean_row", torch.full((1, size[0]), 1 / size[0]))
            bias = graph.add_constant("layer_norm_eps", torch.tensor([float(argument(node, 4, "eps", 1e-5))]))
            with graph.graph.inserting_before(node):
                y = _normalised(graph, source, row, bias)
                y = affine(graph, y, argument(node, 2, "weight"), argument(node, 3, "bias"))
            graph.replace(node, y)
            sites += 1
    return sites


def _normalised(graph: AtenGraph, x: Node, row: Node, eps: Node) -> Node:
    centred = graph.call(aten.sub.Tensor, x, graph.call(aten.mean.dim, x, [-1], True))
    variance = graph.call(aten.linear.default, graph.call(aten.mul.Tensor, centred, centred), row, eps)
    return graph.call(aten.mul.Tensor, centred, graph.call(aten.rsqrt.default, variance))
