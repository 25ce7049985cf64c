from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, same_shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)


@exact
def merge_parallel_convs(program: Program) -> int:
    """Merge convolutions that read one value and are summed, and that value itself, into a single convolution.

            ┌── dw 3x3 ──┐
        x ──┼── dw 1x1 ──┼──(+)── y        x ── dw 3x3 ── y     W = W3 + pad(W1) + identity,  b = b3 + b1
            └────────────┘

    Why: RepViT's 23 depthwise pairs leave as one convolution each, 107 instead of 130 for EdgeSAM, which no exporter
    and no ONNX optimiser does. Exact up to fp32 rounding. Needs equal groups and stride 1, and odd kernels padded to
    keep the size, so that the smaller kernel can sit in the middle of the larger.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in reversed(list(graph.calls(aten.add.Tensor))):  # the outermost sum of a tree first
            if not node._erased and node.users:
                sites += _merge(graph, node)
    return sites


@dataclass(frozen=True)
class _Branch:
    """A summand: a same-size convolution of ``source``, or ``source`` itself where ``conv`` is None."""

    source: Node
    conv: Node | None


def _merge(graph: AtenGraph, total: Node) -> bool:
    leaves = _summands(total)
    for source in _candidate_sources(graph, leaves):
        branches = [_branch(graph, leaf, source) for leaf in leaves]
        convs = [b.conv for b in branches if b is not None and b.conv is not None]
        if None not in branches and len(leaves) > 1 and len({argument(c, 6, "groups", 1) for c in convs}) == 1:
            _replace(graph, total, source, convs, identities=len(leaves) - len(convs))
            graph.graph.eliminate_dead_code()  # the inner sums: they must not be taken for sites of their own
            return True
    log.debug("merge_parallel_convs: %s is not a sum over one input", total.name)
    return False


def _summands(node: Node) -> list[Node]:
    """The leaves of a tree of additions whose inner nodes nobody else reads."""
    leaves = []
    for arg in node.args:
        if not isinstance(arg, Node) or node.kwargs.get("alpha", 1) != 1:
            return [node]
        inner = arg.target == aten.add.Tensor and only_reader(arg) and same_shape(arg, node)
        leaves += _summands(arg) if inner else [arg]
    return leaves


def _candidate_sources(graph: AtenGraph, leaves: list[Node]) -> list[Node]:
    sources = [leaf.args[0] for leaf in leaves if leaf.target == aten.conv2d.default]
    return list(dict.fromkeys(s for s in sources if isinstance(s, Node)))


def _branch(graph: AtenGraph, leaf: Node, source: Node) -> _Branch | None:
    if leaf is source:
        return _Branch(source, None)
    if leaf.target != aten.conv2d.default or leaf.args[0] is not source or not only_reader(leaf):
        return None
    weight, bias_node = graph.constant(leaf.args[1]), argument(leaf, 2, "bias")
    if weight is None or (bias_node is not None and graph.constant(bias_node) is None):
        return None
    stride, dilation = argument(leaf, 3, "stride", [1, 1]), argument(leaf, 5, "dilation", [1, 1])
    plain = set(stride) == {1} and set(dilation) == {1}
    # of the same size then: the kernel is odd, and padded by half of itself
    return _Branch(source, leaf) if plain and same_shape(leaf, source) else None


def _replace(graph: AtenGraph, total: Node, source: Node, convs: list[Node], *, identities: int) -> None:
    weights = [graph.constant(conv.args[1]) for conv in convs]
    largest = max(convs, key=lambda c: graph.constant(c.args[1]).shape[2:].numel())  # type: ignore[union-attr]
    height, width = (max(w.shape[i] for w in weights if w is not None) for i in (2, 3))
    merged = sum(_centred(w.double(), height, width) for w in weights if w is not None)
    assert isinstance(merged, Tensor)
    groups = argument(largest, 6, "groups", 1)
    merged = merged + identities * _identity(merged, groups)
    biases = [graph.constant(argument(conv, 2, "bias")) for conv in convs]
    bias = sum((b.double() for b in biases if b is not None), torch.zeros(merged.shape[0], dtype=torch.float64))
    name = graph.target(largest.args[1]).removesuffix(".weight")
    dtype = weights[0].dtype if weights[0] is not None else torch.float32
    new_weight = graph.add_constant(f"{name}.merged.weight", merged.to(dtype))
    new_bias = graph.add_constant(f"{name}.merged.bias", bias.to(dtype))
    with graph.graph.inserting_before(total):
        padding = [height // 2, width // 2]
        conv = graph.call(aten.conv2d.default, source, new_weight, new_bias, [1, 1], padding, [1, 1], groups)
    graph.replace(total, conv)


def _centred(weight: Tensor, height: int, width: int) -> Tensor:
    y, x = (height - weight.shape[2]) // 2, (width - weight.shape[3]) // 2
    return F.pad(weight, (x, x, y, y))


def _identity(like: Tensor, groups: int) -> Tensor:
    """The kernel that returns its input: a one in the middle, from each channel to itself."""
    kernel = torch.zeros_like(like)
    outputs = torch.arange(like.shape[0])
    kernel[outputs, outputs % (like.shape[0] // groups), like.shape[2] // 2, like.shape[3] // 2] = 1
    return kernel
