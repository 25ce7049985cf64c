from __future__ import annotations

import logging

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.decompose_layer_norm import affine, normalised
from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)


@exact
def decompose_layer_norm_2d(program: Program) -> int:
    """Write a channel norm over axis 1 where it stands, without transposing the map there and back.

        x (B, C, H, W) ── permute ── layer_norm ── permute ── y        x ── means over axis 1, fp16-safe ── y

    Why: runtimes whose maps are channels-first run each permute as a copy of the whole map: two per norm, 1 M values
    each in EdgeSAM's neck. The arithmetic is ``decompose_layer_norm``'s, on axis 1. Exact.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for last in graph.calls(aten.permute.default):
            norm = channel_norm(last)
            if norm is not None:
                _rewrite(graph, last, norm)
                sites += 1
    return sites


def to_last(rank: int) -> list[int]:
    """The permutation that moves axis 1 to the end."""
    return [0, *range(2, rank), 1]


def to_first(rank: int) -> list[int]:
    """Its inverse."""
    return [0, rank - 1, *range(1, rank - 1)]


def channel_norm(last: Node) -> Node | None:
    """The layer_norm of a chain permute, layer_norm, permute that ends in ``last``."""
    norm, rank = last.args[0], len(shape(last))
    if argument(last, 1, "dims") != to_first(rank) or getattr(norm, "target", None) != aten.layer_norm.default:
        return None
    assert isinstance(norm, Node)
    first = norm.args[0]
    one_axis = len(argument(norm, 1, "normalized_shape")) == 1
    if one_axis and isinstance(first, Node) and first.target == aten.permute.default and only_reader(norm):
        return norm if argument(first, 1, "dims") == to_last(rank) else None
    log.debug("decompose_layer_norm_2d: %s is no channel norm, or something else reads it channels-last", norm.name)
    return None


def _rewrite(graph: AtenGraph, last: Node, norm: Node) -> None:
    first, rank = norm.args[0], len(shape(last))
    assert isinstance(first, Node)
    source = first.args[0]
    assert isinstance(source, Node)
    with graph.graph.inserting_before(last):
        y = normalised(graph, source, [1], argument(norm, 4, "eps", 1e-5))
        weight, bias = (_per_channel(graph, argument(norm, i, n), rank) for i, n in ((2, "weight"), (3, "bias")))
        y = affine(graph, y, weight, bias)
    graph.replace(last, y)


def _per_channel(graph: AtenGraph, node: Node | None, rank: int) -> Node | None:
    """(C,) as (C, 1, ...), so that it meets axis 1."""
    if node is None:
        return None
    value, column = graph.constant(node), [-1, *[1] * (rank - 2)]
    if value is None:
        return graph.call(aten.reshape.default, node, column)
    return graph.add_constant(f"{graph.target(node)}_per_channel", value.reshape(column))
