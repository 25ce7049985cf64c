from __future__ import annotations

from math import ceil, log2

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
SCALE = 32.0  # a power of two: dividing by it loses no bit


@exact
def decompose_layer_norm(program: Program) -> int:
    """Write layer norm as means and products that stay inside fp16.

        x ── layer_norm(w, b, eps) ── y        d = (x - mean x) / 32
                                               x ── d ── d * min(rsqrt(mean(d d) + eps / 32^2), cap) ── * w ── + b ── y

    Why: runtimes without the operator square the centred value, and in fp16 that overflows from 256 on. Divided by 32
    first, 8,160 still fits, and rows whose deviation is 0.05 keep two digits of its square. eps / 32^2 is 0 in fp16, so
    that a row of equal values would become 0 * inf: ``cap``, the power of two from 32 / sqrt(eps) on (32,768 for 1e-6),
    is never reached in fp32 and holds fp16 together (for eps of 1e-6 and more).
    Exact: the scale is a power of two and cancels; the last axis or several trailing ones.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(aten.layer_norm.default):
            source = node.args[0]
            assert isinstance(source, Node)
            rank = len(shape(source))
            axes = list(range(rank - len(argument(node, 1, "normalized_shape")), rank))
            with graph.graph.inserting_before(node):
                y = normalised(graph, source, axes, argument(node, 4, "eps", 1e-5))
                y = affine(graph, y, argument(node, 2, "weight"), argument(node, 3, "bias"))
            graph.replace(node, y)
            sites += 1
    return sites


def normalised(graph: AtenGraph, x: Node, axes: list[int], eps: float) -> Node:
    """(x - mean) / sqrt(var + eps) over ``axes``, none of its intermediate values above the square of x / 32."""
    centred = graph.call(aten.sub.Tensor, x, graph.call(aten.mean.dim, x, axes, True))
    small = graph.call(aten.mul.Tensor, centred, 1 / SCALE)
    variance = graph.call(aten.mean.dim, graph.call(aten.mul.Tensor, small, small), axes, True)
    inverse = graph.call(aten.rsqrt.default, graph.call(aten.add.Tensor, variance, eps / SCALE**2))
    if eps > 0:
        inverse = graph.call(aten.clamp.default, inverse, None, 2.0 ** ceil(log2(SCALE * eps**-0.5)))
    return graph.call(aten.mul.Tensor, small, inverse)


def affine(graph: AtenGraph, x: Node, weight: Node | None, bias: Node | None) -> Node:
    """x * weight + bias; either may be missing."""
    if weight is not None:
        x = graph.call(aten.mul.Tensor, x, weight)
    return x if bias is None else graph.call(aten.add.Tensor, x, bias)
