from __future__ import annotations

import logging
from typing import Any

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
VIEWS = {
    aten.unflatten.int, aten.flatten.using_ints, aten.reshape.default, aten.view.default, aten.transpose.int,
    aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim,
}  # fmt: skip
LAYERS = {aten.linear.default, aten.conv2d.default}
PRODUCTS = {aten.mul.Tensor, aten.mul.Scalar}


@exact
def fold_scale(program: Program) -> int:
    """Multiply the weights of a layer instead of its result by a number.

        x ── linear(W, b) ── split into heads ── * 0.25 ── y        x ── linear(0.25 W, 0.25 b) ── split ── y

    Why: attention scales its queries, one operator each and for the image's side a pass over 4,096 rows: 7 operators
    of EdgeSAM's mask decoder. Views between the two do not matter. Exact up to the rounding of the scaled weights.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(*PRODUCTS):
            sites += _fold(graph, node)
    return sites


def _fold(graph: AtenGraph, node: Node) -> bool:
    source, scale = node.args
    layer: Any = source
    while only_reader(layer) and layer.target in VIEWS:
        layer = layer.args[0]
    if not (only_reader(layer) and layer.target in LAYERS and isinstance(scale, (int, float))):
        log.debug("fold_scale: %s scales no layer's result by a number", node.name)
        return False
    assert isinstance(source, Node)
    values = [graph.constant(given) for given in (layer.args[1], argument(layer, 2, "bias")) if given is not None]
    if any(value is None for value in values):
        log.debug("fold_scale: %s has weights that are computed", layer.name)
        return False
    folded = [graph.add_constant("scaled", (v * scale).to(v.dtype)) for v in values if v is not None]
    layer.args = (layer.args[0], *folded, *layer.args[1 + len(folded) :])  # without a bias there stays a None, or none
    graph.replace(node, source)
    return True
