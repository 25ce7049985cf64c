from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.aten.fuse_channel_norm import viewed
from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, same_shape, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
AFFINE = {aten.linear.default, aten.conv2d.default, aten.conv_transpose2d.input}
STEEPEST = 1000.0  # largest beta / gamma that may stand alone: fp16 ends at 65,504


@exact
def fold_dyt_affine(program: Program) -> int:
    """Fold the factors of a dynamic tanh into the affine maps around it.

        conv W, c ── * alpha ── tanh ── * gamma ── + beta ── linear M, m
        conv alpha W, alpha c ── tanh ── linear M diag(gamma), m + M beta

    Why: DyT stands where a norm stood and costs four elementwise operators over the map; two or three of them go. Exact
    where the neighbour reads, or is read by, nothing else. At a convolution that pads with zeros, or a transposed one,
    beta is not the same for all pixels: only gamma goes in, and tanh + beta / gamma is left. Reads through transposes
    and flattened axes as long as the channels stay an axis of their own. Site = alpha, or gamma with beta.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for bend in graph.calls(aten.tanh.default):
            reason = _fold_alpha(graph, bend)
            sites += reason is None
            log.debug("fold_dyt_affine: alpha of %s: %s", bend.name, reason or "folded")
            reason = _fold_gamma(graph, bend)
            sites += reason is None
            log.debug("fold_dyt_affine: gamma of %s: %s", bend.name, reason or "folded")
    return sites


def _fold_alpha(graph: AtenGraph, bend: Node) -> str | None:
    """None when done, else the reason why not."""
    scaled = bend.args[0]
    assert isinstance(scaled, Node)
    source, alpha = _operands(graph, scaled, aten.mul.Tensor)
    if alpha is None or alpha.numel() != 1:
        return "no constant factor before the tanh"
    if source.target not in AFFINE or not only_reader(source) or not same_shape(source, scaled):
        return f"{source.name} is no affine map, or something else reads it"
    weight, bias, reason = _weights(graph, source)
    if weight is None:
        return reason
    factor = alpha.double().reshape(())
    _set_weights(graph, source, factor * weight, None if bias is None else factor * bias)
    graph.replace(scaled, source)
    return None


def _fold_gamma(graph: AtenGraph, bend: Node) -> str | None:
    gained = next(iter(bend.users))
    shifted = next(iter(gained.users), None)
    if shifted is None or not (only_reader(bend) and only_reader(gained)):
        return "something else reads it"
    (left, gamma), (right, beta) = _operands(graph, gained, aten.mul.Tensor), _operands(graph, shifted, aten.add.Tensor)
    axis = _axis(gamma, len(shape(bend)))
    if left is not bend or right is not gained or gamma is None or beta is None or axis is None:
        return "no gamma and beta of one value per channel"
    if axis != _axis(beta, len(shape(bend))) or not same_shape(bend, shifted):
        return "gamma and beta are of different axes"
    reader, axis = _reader(shifted, axis)
    if reader is None or axis != (len(shape(reader)) - 1 if reader.target == aten.linear.default else 1):
        return "its only reader is no affine map over the channels"
    weight, bias, reason = _weights(graph, reader)
    if weight is None:
        return reason
    folded, offset = _through(reader, weight, gamma.double().flatten(), beta.double().flatten())
    if offset is not None:
        _set_weights(graph, reader, folded, offset if bias is None else bias + offset)
        graph.replace(shifted, bend)
        return None
    left_over = beta.double() / gamma.double()
    if not bool((left_over.abs() <= STEEPEST).all()):  # NaN and infinity too
        return f"beta cannot pass {reader.name}, and beta / gamma is too large to stand alone"
    _set_weights(graph, reader, folded, bias)
    constant = graph.add_constant(f"{bend.name}.beta_per_gamma", left_over.to(beta.dtype))
    with graph.graph.inserting_before(shifted):
        graph.replace(shifted, graph.call(aten.add.Tensor, bend, constant))
    return None


def _operands(graph: AtenGraph, node: Node, operator: Any) -> tuple[Node, Tensor | None]:
    """The computed operand of a product or sum and the constant one."""
    if node.target == operator and node.kwargs.get("alpha", 1) == 1:
        for source, constant in (node.args[:2], node.args[1::-1]):
            value = torch.tensor(constant) if isinstance(constant, (int, float)) else viewed(graph, constant)
            if value is not None:
                assert isinstance(source, Node)
                return source, value
    return node, None


def _axis(value: Tensor | None, rank: int) -> int | None:
    """Which axis of a tensor of ``rank`` a constant of one value per channel belongs to."""
    if value is None or value.dim() > rank or max(value.shape, default=1) != value.numel() or value.numel() == 1:
        return None
    return rank - value.dim() + [*value.shape].index(value.numel())


def _reader(node: Node, axis: int) -> tuple[Node | None, int]:
    """The affine map that alone reads ``node``, and where the channel axis is there."""
    while only_reader(node):
        reader = next(iter(node.users))
        if reader.target in AFFINE:
            return (reader if reader.args[0] is node else None), axis
        moved = _moved(reader, axis)
        if moved is None:
            break
        node, axis = reader, moved
    return None, axis


def _moved(node: Node, axis: int) -> int | None:
    """Where a layout operator puts the axis; None for another operator, and where the axis is joined or split."""
    if node.target == aten.permute.default:
        dims = argument(node, 1, "dims")
        return next(i for i, d in enumerate(dims) if d % len(dims) == axis)
    if node.target not in (aten.transpose.int, aten.flatten.using_ints, aten.unflatten.int):
        return None
    source = node.args[0]
    assert isinstance(source, Node)
    rank = len(shape(source))
    first: int = argument(node, 1, "dim", 0) % rank
    if node.target == aten.unflatten.int:
        return None if axis == first else axis + (len(shape(node)) - rank) * (axis > first)
    last: int = argument(node, 2, "end_dim", -1) % rank
    if node.target == aten.transpose.int:
        return {first: last, last: first}.get(axis, axis)
    return None if first <= axis <= last else axis - (last - first) * (axis > last)


def _weights(graph: AtenGraph, node: Node) -> tuple[Tensor | None, Tensor | None, str]:
    """Weight and bias of an affine map in double precision, or no weight and the reason."""
    weight, bias = graph.constant(node.args[1]), argument(node, 2, "bias")
    shift = graph.constant(bias)
    if weight is None or (bias is not None and shift is None):
        return None, None, f"the weights of {node.name} are computed"
    return weight.double(), None if shift is None else shift.double(), ""


def _set_weights(graph: AtenGraph, node: Node, weight: Tensor, bias: Tensor | None) -> None:
    name, dtype = graph.target(node.args[1]).removesuffix(".weight"), node.meta["val"].dtype
    new = graph.add_constant(f"{name}.weight", weight.to(dtype))
    shift = None if bias is None else graph.add_constant(f"{name}.bias", bias.to(dtype))
    node.args = (node.args[0], new, shift, *node.args[3:])


def _through(node: Node, weight: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor | None]:
    """The weight that takes gamma, and what beta becomes behind it; None where that is not one value per channel."""
    if node.target == aten.linear.default:
        return weight * gamma, weight @ beta
    if node.target == aten.conv_transpose2d.input:
        return weight * gamma[:, None, None, None], None
    groups = argument(node, 6, "groups", 1)
    by_group = weight.unflatten(0, (groups, -1))  # type: ignore[no-untyped-call]
    factors, shifts = (v.reshape(groups, 1, -1, 1, 1) for v in (gamma, beta))
    padded = any(argument(node, 4, "padding", [0, 0]))
    offset = None if padded else (by_group * shifts).sum((2, 3, 4)).flatten()
    return (by_group * factors).flatten(0, 1), offset
