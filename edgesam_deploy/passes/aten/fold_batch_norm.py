from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten


@exact
def fold_batch_norm(program: Program) -> int:
    """Fold a batch norm into the convolution before it.

        x ── conv W ── BN(g, b, mean, var) ── y        x ── conv W g/s, b - mean g/s ── y,   s = sqrt(var + eps)

    Why: 106 of the EdgeSAM encoder's operators are batch norms; after this there are none. Exact up to fp32 rounding:
    the fold is computed in float64. Skipped where something else reads the convolution too.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for norm in graph.calls(aten.batch_norm.default):
            sites += _fold(graph, norm)
    return sites


def _fold(graph: AtenGraph, norm: Node) -> bool:
    conv, training = norm.args[0], argument(norm, 5, "training", False)
    if not isinstance(conv, Node) or conv.target != aten.conv2d.default or training or not only_reader(conv):
        return False
    weight = graph.constant(conv.args[1])
    bias_node = argument(conv, 2, "bias")
    gain_node, shift_node = argument(norm, 1, "weight"), argument(norm, 2, "bias")
    statistics = [graph.constant(argument(norm, i, n)) for i, n in ((3, "running_mean"), (4, "running_var"))]
    computed = [n for n in (bias_node, gain_node, shift_node) if n is not None and graph.constant(n) is None]
    if weight is None or computed or None in statistics:
        return False
    mean, var = (s.double() for s in statistics if s is not None)
    gain, shift = _affine(graph, gain_node), _affine(graph, shift_node)
    scale = torch.rsqrt(var + argument(norm, 7, "eps", 1e-5)) * (1 if gain is None else gain)
    bias = graph.constant(bias_node)
    offset = ((0 if bias is None else bias.double()) - mean) * scale + (0 if shift is None else shift)
    name = graph.target(conv.args[1]).removesuffix(".weight")
    folded = graph.add_constant(f"{name}.weight", (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype))
    added = graph.add_constant(f"{name}.bias", offset.to(weight.dtype))
    conv.args = (conv.args[0], folded, added, *conv.args[3:])
    graph.replace(norm, conv)
    return True


def _affine(graph: AtenGraph, node: Node | None) -> Tensor | None:
    value = graph.constant(node)
    return None if value is None else value.double()
