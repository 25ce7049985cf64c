from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, same_shape, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)


@exact
def absorb_channel_offset(program: Program) -> int:
    """Add a number per channel where constants are added anyway, not to every pixel of an image.

        x (B, C, H, W) ── + c ── tokens ──┬── + pe            x ── tokens ──┬── + (pe + c)
                                          ├── linear(W, b)                  ├── linear(W, b + W c)
                                          └── + linear(V, d)                └── + linear(V, d + c)

    Why: without a mask prompt the decoder adds one learned vector to all 4,096 pixels of the image's embedding, a pass
    over 4 MB (0.012 of the decoder's time in ONNX Runtime), and the positions are a constant that is added next. Not
    for phones: where the plain positions are read too, their sum is a second constant, 4.2 MB in fp32. All readers must
    be of the three kinds. Exact up to the order of fp32 sums; the constants are computed in float64.
    Site = a sum.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for total in graph.calls(aten.add.Tensor):
            sites += _absorb(graph, total)
    return sites


def _absorb(graph: AtenGraph, total: Node) -> bool:
    terms, tokens = _offset(graph, total), _tokens(total)
    if terms is None or tokens is None:
        return False
    x, offset = terms
    places = [_place(graph, tokens, reader) for reader in tokens.users]
    if not places or None in places:
        log.debug("absorb_channel_offset: %s has a reader with no constant of its own", total.name)
        return False
    for reader, place in zip(list(tokens.users), places, strict=True):
        if place is reader and reader.target == aten.add.Tensor:
            _into_sum(graph, tokens, reader, offset)
        else:
            assert place is not None
            _into_bias(graph, place, offset, projected=place is reader)
    graph.replace(total, x)
    return True


def _offset(graph: AtenGraph, total: Node) -> tuple[Node, Tensor] | None:
    """The computed term of a sum of four axes and the other, a constant per channel, as (C,) in float64."""
    if len(shape(total)) != 4 or argument(total, 2, "alpha", 1) != 1:
        return None
    channels = shape(total)[1]
    for x, other in (total.args[:2], total.args[1::-1]):
        constant = graph.constant(other)
        if constant is not None and isinstance(x, Node) and same_shape(x, total) and constant.is_floating_point():
            fits = tuple(constant.shape[-3:]) == (channels, 1, 1) and constant.numel() == channels
            return (x, constant.flatten().double()) if fits else None
    return None


def _tokens(total: Node) -> Node | None:
    """``total`` as (B, H W, C), where nothing else reads it."""
    node = total
    for operator, expected in ((aten.flatten.using_ints, (2, -1)), (aten.transpose.int, (1, 2))):
        if not only_reader(node):
            return None
        (node,) = node.users
        if node.target != operator or (*node.args[1:], *(-1,) * (3 - len(node.args))) != expected:
            return None
    return node


def _place(graph: AtenGraph, tokens: Node, reader: Node) -> Node | None:
    """The operator whose constant takes the offset for ``reader``: a sum, a linear layer, or the layer beside it."""
    if reader.target == aten.linear.default:
        return reader if _has_constants(graph, reader) and reader.args[0] is tokens else None
    if reader.target != aten.add.Tensor or argument(reader, 2, "alpha", 1) != 1:
        return None
    other = reader.args[1] if reader.args[0] is tokens else reader.args[0]
    if graph.constant(other) is not None:
        return reader
    beside = isinstance(other, Node) and other.target == aten.linear.default and only_reader(other)
    return other if beside and _has_constants(graph, other) and same_shape(other, tokens) else None  # type: ignore[return-value,arg-type]


def _has_constants(graph: AtenGraph, layer: Node) -> bool:
    bias = argument(layer, 2, "bias")
    return graph.constant(layer.args[1]) is not None and (bias is None or graph.constant(bias) is not None)


def _into_sum(graph: AtenGraph, tokens: Node, total: Node, offset: Tensor) -> None:
    other = total.args[1] if total.args[0] is tokens else total.args[0]
    constant = graph.constant(other)
    assert constant is not None
    moved = graph.add_constant(f"{graph.target(other)}_offset", (constant.double() + offset).to(constant.dtype))
    total.args = (tokens, moved)


def _into_bias(graph: AtenGraph, layer: Node, offset: Tensor, *, projected: bool) -> None:
    weight, bias = graph.constant(layer.args[1]), graph.constant(argument(layer, 2, "bias"))
    assert weight is not None
    moved = weight.double() @ offset if projected else offset
    moved = moved if bias is None else moved + bias.double()
    name = f"{graph.target(layer.args[1]).removesuffix('.weight')}_offset_bias"
    layer.args = (*layer.args[:2], graph.add_constant(name, moved.to(weight.dtype)))
    layer.kwargs = {}
