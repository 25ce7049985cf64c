from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
POINTWISE = {aten.relu.default, aten.gelu.default, aten.tanh.default, aten.sigmoid.default}


@exact
def merge_parallel_heads(program: Program) -> int:
    """Run heads that each read a token of their own, and are stacked afterwards, as one grouped 1x1 convolution.

        token 0 ── linear ── relu ── linear ──┐
        token 1 ── linear ── relu ── linear ──┤ stack        tokens as channels ── conv ── relu ── conv
        ...                                   ┘              (k C, 1, 1), k groups

    Why: SAM's four hypernetworks are 12 products of one row with what picks the rows and joins the results, 25
    operators of EdgeSAM's mask decoder in Core ML where 8 do; every operator is a dispatch, and none has work for one.
    Exact: the same products. Heads must have the same layers, and their tokens must follow each other. Site = a stack.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(aten.stack.default):
            heads = [_head(graph, entry) for entry in node.args[0]]  # type: ignore[union-attr]
            found = [head for head in heads if head is not None]
            if len(found) < 2 or len(found) < len(heads) or not _alike(graph, node, found):
                log.debug("merge_parallel_heads: %s joins no heads of the same form", node.name)
                continue
            _merge(graph, node, found)
            sites += 1
    return sites


@dataclass(frozen=True)
class _Head:
    """``layers`` from the token to the stack: linear layers and pointwise operators on (B, C)."""

    tokens: Node  # (B, T, C)
    place: int
    layers: tuple[Node, ...]


def _head(graph: AtenGraph, node: Any) -> _Head | None:
    layers: list[Node] = []
    while isinstance(node, Node) and only_reader(node):
        if node.target is aten.select.int:
            tokens, dim, place = node.args[:3]
            known = isinstance(tokens, Node) and dim == 1 and isinstance(place, int) and len(shape(tokens)) == 3
            place = place + shape(tokens)[1] if known and place < 0 else place  # type: ignore[operator]
            return _Head(tokens, place, tuple(reversed(layers))) if known and layers else None  # type: ignore[arg-type]
        if node.target not in POINTWISE and not _is_linear(graph, node):
            return None
        layers.append(node)
        node = node.args[0]
    return None


def _is_linear(graph: AtenGraph, node: Node) -> bool:
    if node.target is not aten.linear.default or graph.constant(node.args[1]) is None:
        return False
    bias = argument(node, 2, "bias")
    return bias is None or graph.constant(bias) is not None


def _alike(graph: AtenGraph, stack: Node, heads: list[_Head]) -> bool:
    first = heads[0]
    forms = {tuple(_form(graph, layer) for layer in head.layers) for head in heads}
    places = [head.place for head in heads]
    follow = places == list(range(first.place, first.place + len(heads)))
    dim = argument(stack, 1, "dim", 0)
    return len(forms) == 1 and follow and dim in (1, -2) and all(head.tokens is first.tokens for head in heads)


def _form(graph: AtenGraph, layer: Node) -> tuple[Any, ...]:
    if layer.target in POINTWISE:
        return layer.target, tuple(sorted(layer.kwargs.items()))
    weight = graph.constant(layer.args[1])
    assert weight is not None
    return layer.target, tuple(weight.shape), argument(layer, 2, "bias") is None


def _merge(graph: AtenGraph, stack: Node, heads: list[_Head]) -> None:
    tokens, count = heads[0].tokens, len(heads)
    channels = shape(tokens)[2]
    with graph.graph.inserting_before(stack):
        if shape(tokens)[1] != count:
            tokens = graph.call(aten.slice.Tensor, tokens, 1, heads[0].place, heads[0].place + count)
        x = graph.call(aten.reshape.default, tokens, [-1, count * channels, 1, 1])
        for layers in zip(*(head.layers for head in heads), strict=True):
            x = _together(graph, x, layers, count)
        joined = graph.call(aten.reshape.default, x, [-1, count, shape(x)[1] // count])
    graph.replace(stack, joined)


def _together(graph: AtenGraph, x: Node, layers: tuple[Node, ...], count: int) -> Node:
    """One layer of all heads on (B, k C, 1, 1)."""
    if layers[0].target in POINTWISE:
        return graph.call(layers[0].target, x, **layers[0].kwargs)
    weight = graph.add_constant("heads_weight", _joined(graph, [layer.args[1] for layer in layers])[:, :, None, None])
    biases = [argument(layer, 2, "bias") for layer in layers]
    bias = None if None in biases else graph.add_constant("heads_bias", _joined(graph, biases))
    return graph.call(aten.conv2d.default, x, weight, bias, [1, 1], [0, 0], [1, 1], count)


def _joined(graph: AtenGraph, nodes: list[Any]) -> torch.Tensor:
    values = [graph.constant(node) for node in nodes]
    return torch.cat([value.detach() for value in values if value is not None])
