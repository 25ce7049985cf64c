from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, same_shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
RESIZES = (
    aten.upsample_bicubic2d.vec,
    aten.upsample_bicubic2d.default,
    aten.upsample_bilinear2d.vec,
    aten.upsample_bilinear2d.default,
)


@exact
def absorb_pointwise_conv(program: Program) -> int:
    """Let the convolutions whose sum a 1x1 convolution reads do its work: nothing between them bends.

        a ── conv A ──────────(+)── 1x1 N ── y        a ── conv N A ──────────(+)── y
        b ── conv B ── resize ─┘                      b ── conv N B ── resize ─┘

    Why: the neck of EdgeSAM's encoder sums two projections, one of them enlarged, and projects the sum: 256 x 256
    weights on a map of 64 x 64, 0.9 % of the encoder's time and one rounding of weights less in lower precision.
    Exact: a 1x1 convolution commutes with interpolation, whose weights sum to 1, so that biases pass it too. Left alone
    where the number of channels changes, and where anybody else reads what lies between.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(aten.conv2d.default):
            sites += _absorb(graph, node)
    return sites


def _absorb(graph: AtenGraph, node: Node) -> bool:
    weight, source = graph.constant(node.args[1]), node.args[0]
    assert isinstance(source, Node)
    if weight is None or weight.shape[2:] != (1, 1) or not same_shape(node, source) or not _plain(graph, node):
        return False
    leaves = _leaves(graph, source)
    if leaves is None:
        log.debug("absorb_pointwise_conv: %s reads something else than sums of convolutions", node.name)
        return False
    bias = _bias(graph, node)
    for leaf in leaves:
        _project(graph, leaf, weight.flatten(1).double(), bias)
        bias = None  # once: the leaves are summed
    graph.replace(node, source)
    return True


def _plain(graph: AtenGraph, node: Node) -> bool:
    """Whether a convolution has constants only, and one group: then its outputs can be projected."""
    bias = argument(node, 2, "bias")
    known = graph.constant(node.args[1]) is not None and (bias is None or graph.constant(bias) is not None)
    return known and argument(node, 6, "groups", 1) == 1


def _leaves(graph: AtenGraph, node: Node) -> list[Node] | None:
    """The convolutions that ``node`` sums and enlarges, read by nobody else; None where it does anything else."""
    if not only_reader(node):
        return None
    if node.target == aten.conv2d.default:
        return [node] if _plain(graph, node) else None
    if node.target in RESIZES:
        inner = node.args[0]
        return _leaves(graph, inner) if isinstance(inner, Node) else None
    terms = node.args[:2]
    if node.target != aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
        return None
    found: list[Node] = []
    for term in terms:
        leaves = _leaves(graph, term) if isinstance(term, Node) and same_shape(term, node) else None
        if leaves is None:
            return None
        found += leaves
    return found


def _bias(graph: AtenGraph, node: Node) -> Tensor | None:
    bias = graph.constant(argument(node, 2, "bias"))
    return None if bias is None else bias.double()


def _project(graph: AtenGraph, leaf: Node, matrix: Tensor, added: Tensor | None) -> None:
    """Multiply a convolution's outputs by ``matrix`` (C, C) and add ``added`` (C)."""
    weight, bias = graph.constant(leaf.args[1]), _bias(graph, leaf)
    assert weight is not None
    name = graph.target(leaf.args[1]).removesuffix(".weight")
    turned = (matrix @ weight.flatten(1).double()).view_as(weight).to(weight.dtype)
    terms = [t for t in (None if bias is None else matrix @ bias, added) if t is not None]
    new_weight = graph.add_constant(f"{name}.projected.weight", turned)
    new_bias = graph.add_constant(f"{name}.projected.bias", sum(terms).to(weight.dtype)) if terms else None  # type: ignore[union-attr]
    leaf.args = (leaf.args[0], new_weight, new_bias, *leaf.args[3:])
    leaf.kwargs = {key: value for key, value in leaf.kwargs.items() if key != "bias"}
