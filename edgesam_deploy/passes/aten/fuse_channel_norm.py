from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.aten.decompose_layer_norm_2d import to_first, to_last
from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, same_shape, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
VIEWS = {aten.unsqueeze.default, aten.reshape.default, aten.view.default}
ADDS, MULS = {aten.add.Tensor, aten.add.Scalar}, {aten.mul.Tensor, aten.mul.Scalar}


@exact
def fuse_channel_norm(program: Program) -> int:
    """Put back the one norm operator that was spelled out as means, squares and roots.

        u = mean(x, 1)   s = mean((x - u)^2, 1)   (x - u) / sqrt(s + eps) * w + b
        x ── permute ── layer_norm(w, b, eps) ── permute ── y

    Why: SAM writes its LayerNorm2d that way, eight operators over the whole map where runtimes have one kernel. Any
    spelling: pow or product, var, rsqrt or division, either order of the operands, weight and bias or none, over axis
    1 or the last one. Exact up to the order of fp32 sums.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(aten.div.Tensor, aten.mul.Tensor):
            sites += _fuse(graph, node)
    return sites


def _fuse(graph: AtenGraph, node: Node) -> bool:
    found = _normalised(node)
    if found is None:
        return False
    x, axis, eps = found
    rank = len(shape(x))
    size = shape(x)[axis]
    if axis not in (1, rank - 1) or not isinstance(size, int):
        log.debug("fuse_channel_norm: %s normalises axis %s, which is no channel axis", node.name, axis)
        return False
    column = [size, *[1] * (rank - 1 - axis)]
    last, weight = _followed(graph, node, MULS, column)
    last, bias = _followed(graph, last, ADDS, column)
    with graph.graph.inserting_before(last):
        swap = axis != rank - 1
        y = graph.call(aten.permute.default, x, to_last(rank)) if swap else x
        constants = [None if c is None else graph.add_constant(f"{x.name}_norm.{n}", c.reshape(size))
                     for n, c in (("weight", weight), ("bias", bias))]  # fmt: skip
        y = graph.call(aten.layer_norm.default, y, [size], *constants, eps)
        y = graph.call(aten.permute.default, y, to_first(rank)) if swap else y
    graph.replace(last, y)
    return True


def _normalised(node: Node) -> tuple[Node, int, float] | None:
    """(x, axis, eps) where ``node`` is (x - mean) / sqrt(var + eps)."""
    for centred, root in _ordered(node):
        found, inside = _centred(centred), _under_root(root, inverted=node.target == aten.mul.Tensor)
        if found is None or inside is None or inside.target not in ADDS or argument(inside, 2, "alpha", 1) != 1:
            continue
        for variance, eps in _ordered(inside):
            if isinstance(eps, float) and _variance(variance) == found:
                return *found, eps
    return None


def _ordered(node: Node) -> list[tuple[Any, Any]]:
    """The operands of a node; of a commutative one in both orders."""
    a, b = node.args[:2]
    return [(a, b)] if node.target == aten.div.Tensor else [(a, b), (b, a)]


def _under_root(node: Any, *, inverted: bool) -> Node | None:
    """v where ``node`` is its root, or with ``inverted`` one over its root."""
    if not isinstance(node, Node) or not node.args:
        return None
    inside: Any = node.args[0]
    exponent = -0.5 if inverted else 0.5
    if node.target == (aten.rsqrt.default if inverted else aten.sqrt.default):
        return inside  # type: ignore[no-any-return]
    if node.target == aten.pow.Tensor_Scalar and node.args[1] == exponent:
        return inside  # type: ignore[no-any-return]
    return _under_root(inside, inverted=False) if inverted and node.target == aten.reciprocal.default else None


def _mean(node: Any) -> tuple[Node, int] | None:
    """(x, axis) where ``node`` is the mean over that one axis, which stays as 1."""
    if not isinstance(node, Node) or node.target != aten.mean.dim or not argument(node, 2, "keepdim", False):
        return None
    return _one_axis(node)


def _one_axis(node: Node) -> tuple[Node, int] | None:
    source, axes = node.args[0], argument(node, 1, "dim")
    if not isinstance(source, Node) or axes is None or len(axes) != 1:
        return None
    return source, axes[0] % len(shape(source))


def _centred(node: Any) -> tuple[Node, int] | None:
    """(x, axis) where ``node`` is x - mean(x)."""
    if not isinstance(node, Node) or node.target != aten.sub.Tensor or node.kwargs.get("alpha", 1) != 1:
        return None
    found = _mean(node.args[1])
    return found if found is not None and found[0] is node.args[0] else None


def _variance(node: Any) -> tuple[Node, int] | None:
    """(x, axis) where ``node`` is the biased variance of x."""
    if not isinstance(node, Node):
        return None
    if node.target == aten.var.correction:
        biased = node.kwargs.get("correction", 1) == 0 and node.kwargs.get("keepdim", False)
        return _one_axis(node) if biased else None
    if node.target == aten.var.dim:
        biased = not argument(node, 2, "unbiased", True) and argument(node, 3, "keepdim", False)
        return _one_axis(node) if biased else None
    found = _mean(node)
    if found is None:
        return None
    square, axis = found
    factors = square.args[:2]
    if square.target == aten.square.default or (square.target == aten.pow.Tensor_Scalar and factors[1] == 2):
        factors = (factors[0], factors[0])
    elif square.target != aten.mul.Tensor:
        return None
    left, right = (_centred(f) for f in factors)
    return left if left is not None and left == right and left[1] == axis else None


def _followed(graph: AtenGraph, node: Node, operators: set[Any], column: list[int]) -> tuple[Node, Tensor | None]:
    """The only reader of ``node`` and its constant of one value per channel; ``node`` itself where there is none."""
    if not only_reader(node):
        return node, None
    (reader,) = node.users
    if reader.target not in operators or reader.kwargs.get("alpha", 1) != 1:
        return node, None
    for _, other in _ordered(reader):
        value = viewed(graph, other)
        if value is not None and same_shape(reader, node) and _is_column(value, column):
            return reader, value
    return node, None


def _is_column(value: Tensor, column: list[int]) -> bool:
    return value.numel() == column[0] and [*value.shape][-len(column) :] == column


def viewed(graph: AtenGraph, node: Any) -> Tensor | None:
    """The value of a constant, also one that is reshaped on the way."""
    views = []
    while isinstance(node, Node) and node.target in VIEWS:
        views.append(node)
        node = node.args[0]
    value = graph.constant(node)
    for view in reversed(views):
        value = None if value is None else view.target(value, *view.args[1:])  # type: ignore[operator]
    return value
