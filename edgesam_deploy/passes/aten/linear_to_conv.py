from __future__ import annotations

import logging

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
POINTWISE = {aten.gelu.default, aten.relu.default, aten.tanh.default, aten.sigmoid.default}


@exact
def linear_to_conv(program: Program) -> int:
    """Compute a linear layer on tokens as a 1x1 convolution on a map one row high.

        x (B, T, C) ── linear ── gelu ── linear ── y
        x ── (B, C, 1, T) ── conv 1x1 ── gelu ── conv 1x1 ── (B, T, O) ── y

    Why: Apple's ANE and Qualcomm's HTP compute on maps with the channels before the pixels; a linear layer on tokens
    makes them transpose around every product, or leaves their fast path. Transposes stand at the borders only, none
    between layers that follow each other. Exact: the same products.
    """
    with AtenGraph(program) as graph:
        maps: dict[Node, Node] = {}  # tokens -> the same values as a map (B, C, 1, T)
        kernels: dict[Node, Node] = {}
        sites = 0
        for node in graph.calls(aten.linear.default, *POINTWISE):
            source = node.args[0]
            assert isinstance(source, Node)
            with graph.graph.inserting_before(node):
                if node.target in POINTWISE:
                    if source in maps:
                        _replace(graph, node, graph.call(node.target, maps[source], **node.kwargs), maps)
                elif _convertible(graph, node):
                    _replace(graph, node, _convolved(graph, node, source, maps, kernels), maps)
                    sites += 1
        return sites


def _convertible(graph: AtenGraph, node: Node) -> bool:
    bias = argument(node, 2, "bias")
    constant = graph.constant(node.args[1]) is not None and (bias is None or graph.constant(bias) is not None)
    if constant and len(shape(node)) in (3, 4):
        return True
    log.debug("linear_to_conv: %s is not on tokens, or its weights are computed", node.name)
    return False


def _convolved(graph: AtenGraph, node: Node, source: Node, maps: dict[Node, Node], kernels: dict[Node, Node]) -> Node:
    weight = node.args[1]
    assert isinstance(weight, Node)
    if weight not in kernels:
        value = graph.constant(weight)
        assert value is not None
        kernels[weight] = graph.add_constant(f"{graph.target(weight)}_1x1", value[:, :, None, None])
    if source not in maps:
        rows = graph.call(aten.unsqueeze.default, source, 1) if len(shape(source)) == 3 else source
        maps[source] = graph.call(aten.permute.default, rows, [0, 3, 1, 2])
    return graph.call(aten.conv2d.default, maps[source], kernels[weight], argument(node, 2, "bias"))


def _replace(graph: AtenGraph, old: Node, as_map: Node, maps: dict[Node, Node]) -> None:
    """Let readers of tokens have ``as_map`` as tokens again; those that are converted later will read the map."""
    tokens = graph.call(aten.permute.default, as_map, [0, 2, 3, 1])
    if len(shape(old)) == 3:
        tokens = graph.call(aten.squeeze.dim, tokens, 1)
    maps[tokens] = as_map
    graph.replace(old, tokens)
