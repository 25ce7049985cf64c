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
POINTWISE = {aten.gelu.default, aten.relu.default, aten.tanh.default, aten.sigmoid.default}
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


@exact
def channel_last_upscaling(program: Program) -> int:
    """Keep a chain of 2x2 transposed convolutions in token layout until its product with the hypernetworks.

        tokens (B, P, C) ── to NCHW ── convT 2x2 ── norm ── GELU ── convT 2x2 ── GELU ── hyper @ .
        tokens (B, P, C) ── @ (C, 4 C') ── norm ── GELU ── @ (C', 4 C'') ── GELU ── hyper @ . ── unshuffle 4 masks

    Why: a 2x2 convolution of stride 2 writes each output once, so it is a product per pixel followed by a shuffle. In
    token layout the channel norm runs on the last axis, no map is transposed, and only the 4 masks are shuffled instead
    of 32 channels: 0.87 of the decoder's latency in ONNX Runtime. Exact up to the order of fp32 sums.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for product in graph.calls(aten.matmul.default):
            chain = _match(graph, product)
            if chain is not None:
                _rewrite(graph, chain)
                sites += 1
    return sites


@dataclass(frozen=True)
class _Chain:
    """``layers`` run from the tokens to the product: transposed convolutions, norms and pointwise operators."""

    tokens: Node  # (B, P, C)
    grid: tuple[int, int]  # P = height * width
    layers: tuple[Node, ...]
    hyper: Node  # (B, M, C'')
    result: Node  # (B, M, H, W)

    @property
    def levels(self) -> int:
        return sum(layer.target == aten.conv_transpose2d.input for layer in self.layers)


def _match(graph: AtenGraph, product: Node) -> _Chain | None:
    """The chain that ends in ``unflatten(hyper @ flatten(map))``, or None with the reason logged."""
    hyper, flat = product.args
    result = next(iter(product.users), None)
    if not isinstance(flat, Node) or flat.target != aten.flatten.using_ints or result is None:
        return None
    if result.target != aten.unflatten.int or not only_reader(product) or len(shape(product)) != 3:
        return None
    if not only_reader(flat) or not _undoes(result, flat):
        log.debug("channel_last_upscaling: %s has another reader, or does not end in its own size", flat.name)
        return None
    node, layers = flat.args[0], []
    while isinstance(node, Node) and only_reader(node):
        layer, before = _layer(graph, node)
        if layer is None:
            break
        layers.append(layer)
        node = before
    tokens = _tokens(node)
    chain_has_conv = any(layer.target == aten.conv_transpose2d.input for layer in layers)
    if tokens is None or not chain_has_conv:
        log.debug("channel_last_upscaling: %s does not start at tokens in a grid", product.name)
        return None
    height, width = shape(node)[2:]
    return _Chain(tokens, (height, width), tuple(reversed(layers)), hyper, result)  # type: ignore[arg-type]


def _undoes(result: Node, flat: Node) -> bool:
    """Whether ``flat`` is the (B, C, H W) of a static map (B, C, H, W) and ``result`` has that H and W again."""
    size = shape(flat.args[0])[2:]
    joins = argument(flat, 1, "start_dim", 0) == 2 and argument(flat, 2, "end_dim", -1) in (3, -1)
    static = all(isinstance(d, int) for d in size)
    return joins and static and argument(result, 1, "dim") in (2, -1) and shape(result)[2:] == size


def _layer(graph: AtenGraph, node: Node) -> tuple[Node | None, Node | None]:
    """The layer that computes ``node`` and the node before it."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return None, None
    if node.target in POINTWISE:
        return node, source
    if node.target == aten.conv_transpose2d.input:
        return (node, source) if _is_2x2(graph, node) else (None, None)
    # LayerNorm2d: permute, layer_norm over the last axis, permute back
    if node.target == aten.permute.default and argument(node, 1, "dims") == TO_FIRST and only_reader(source):
        before = source.args[0]
        is_norm = source.target == aten.layer_norm.default and len(argument(source, 1, "normalized_shape")) == 1
        if is_norm and isinstance(before, Node) and only_reader(before) and argument(before, 1, "dims") == TO_LAST:
            return source, before.args[0]  # type: ignore[return-value]
    return None, None


def _is_2x2(graph: AtenGraph, node: Node) -> bool:
    weight = graph.constant(node.args[1])
    arguments = [
        argument(node, index, name, default)
        for index, name, default in (
            (3, "stride", [1, 1]), (4, "padding", [0, 0]), (5, "output_padding", [0, 0]),
            (6, "groups", 1), (7, "dilation", [1, 1]),
        )
    ]  # fmt: skip
    plain = arguments == [[2, 2], [0, 0], [0, 0], 1, [1, 1]]
    bias = argument(node, 2, "bias")
    return (
        plain
        and weight is not None
        and weight.shape[2:] == (2, 2)
        and (bias is None or graph.constant(bias) is not None)
    )


def _tokens(node: Any) -> Node | None:
    """(B, P, C) where ``node`` is its transpose (B, C, P) laid out as a map (B, C, h, w)."""
    if not isinstance(node, Node) or node.target != aten.unflatten.int:
        return None
    source = node.args[0]
    if argument(node, 1, "dim") not in (2, -1):
        return None
    swapped = isinstance(source, Node) and source.target == aten.transpose.int and sorted(source.args[1:]) == [1, 2]  # type: ignore[type-var]
    return source.args[0] if swapped and len(shape(node)) == 4 else None  # type: ignore[union-attr, return-value]


def _rewrite(graph: AtenGraph, chain: _Chain) -> None:
    with graph.graph.inserting_before(chain.result):
        x = chain.tokens
        for layer in chain.layers:
            x = _token_layer(graph, layer, x)
        # (B, P 4^levels, C'') -> (B, M, P 4^levels), the sub-pixels of a token side by side
        masks = graph.call(aten.matmul.default, chain.hyper, graph.call(aten.transpose.int, x, 1, 2))
        result = _unshuffle(graph, masks, chain)
    graph.replace(chain.result, result)


def _token_layer(graph: AtenGraph, layer: Node, x: Node) -> Node:
    if layer.target in POINTWISE:
        return graph.call(layer.target, x, *layer.args[1:], **layer.kwargs)
    if layer.target == aten.layer_norm.default:
        return graph.call(aten.layer_norm.default, x, *layer.args[1:], **layer.kwargs)
    weight, bias = graph.constant(layer.args[1]), graph.constant(argument(layer, 2, "bias"))
    assert weight is not None
    inputs, outputs = weight.shape[:2]
    name = graph.target(layer.args[1]).removesuffix(".weight")
    # (in, out, dy, dx) -> rows ordered (dy, dx, out): each token gives its four sub-pixels, channels last
    matrix = graph.add_constant(f"{name}.per_pixel.weight", weight.permute(2, 3, 1, 0).reshape(4 * outputs, inputs))
    offset = None if bias is None else graph.add_constant(f"{name}.per_pixel.bias", bias.repeat(4))
    wide = graph.call(aten.linear.default, x, matrix, offset)
    pixels = graph.call(aten.unflatten.int, wide, -1, [4, outputs])
    return graph.call(aten.flatten.using_ints, pixels, 1, 2)  # at once, so that a second level stays within four axes


def _unshuffle(graph: AtenGraph, masks: Node, chain: _Chain) -> Node:
    """(B, M, h w 4 ... 4) with sub-pixels innermost -> (B, M, H, W): per level, swap columns with the sub-rows."""
    height, width = chain.grid
    count = shape(masks)[1]
    rest = 4**chain.levels
    x = masks
    for _ in range(chain.levels):
        rest //= 2
        x = graph.call(aten.reshape.default, x, [-1, width, 2, rest])  # rows x columns x dy x (dx and deeper levels)
        x = graph.call(aten.transpose.int, x, 1, 2)
        height, width, rest = 2 * height, 2 * width, rest // 2
    return graph.call(aten.reshape.default, x, [-1, count, height, width])
