from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, same_shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)


@exact
def merge_label_rows(program: Program) -> int:
    """Look up the learned rows of all label codes by one comparison and one product.

        x + (labels == 0) * row0 + (labels == 1) * row1 + ...        x + (labels == [0, 1, ...]) @ [row0, row1, ...]

    Why: SAM's prompt encoder compares, casts, multiplies and adds once per code: 20 operators for five codes where 4
    do. Exact: of the products that are summed one is the row and the others are 0. Needs two codes or more that are
    compared with the same labels (..., 1) and rows of one value per channel. Site = a code.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in reversed(list(graph.calls(aten.add.Tensor))):  # the outermost sum of a tree first
            if not node._erased:
                sites += _merge(graph, node)
                graph.graph.eliminate_dead_code()  # the inner sums: they must not be taken for sites of their own
    return sites


@dataclass(frozen=True)
class _Code:
    """A summand ``(labels == code) * row``."""

    labels: Node
    code: float
    row: Tensor


def _merge(graph: AtenGraph, total: Node) -> int:
    leaves = _summands(total)
    found = {leaf: code for leaf in leaves if (code := _code(graph, leaf)) is not None}
    codes = list(found.values())
    rest = [leaf for leaf in leaves if leaf not in found]
    if len(codes) < 2 or len({c.labels for c in codes}) > 1 or len({c.row.numel() for c in codes}) > 1 or not rest:
        return 0
    numbers = torch.tensor([c.code for c in codes], dtype=codes[0].labels.meta["val"].dtype)
    table = graph.add_constant("label_rows", torch.stack([c.row.flatten() for c in codes]))
    known = graph.add_constant("label_codes", numbers)
    with graph.graph.inserting_before(total):
        value = rest[0]
        for leaf in rest[1:]:
            value = graph.call(aten.add.Tensor, value, leaf)
        same = graph.call(aten.eq.Tensor, codes[0].labels, known)
        chosen = graph.call(aten.matmul.default, graph.call(aten.to.dtype, same, table.meta["val"].dtype), table)
        value = graph.call(aten.add.Tensor, value, chosen)
    graph.replace(total, value)
    return len(codes)


def _summands(node: Node) -> list[Node]:
    """The leaves of a tree of additions whose inner nodes nobody else reads."""
    leaves: list[Node] = []
    for arg in node.args[:2]:
        if not isinstance(arg, Node) or argument(node, 2, "alpha", 1) != 1:
            return [node]
        inner = arg.target == aten.add.Tensor and only_reader(arg) and same_shape(arg, node)
        leaves += _summands(arg) if inner else [arg]
    return leaves


def _code(graph: AtenGraph, leaf: Node) -> _Code | None:
    """What a summand looks up, or None."""
    if leaf.target != aten.mul.Tensor or not only_reader(leaf):
        return None
    for same, row in (leaf.args, leaf.args[::-1]):
        value = graph.constant(row)
        if not isinstance(same, Node) or same.target != aten.eq.Scalar or value is None:
            continue
        labels, number = same.args[:2]
        assert isinstance(labels, Node)
        assert isinstance(number, (int, float))
        if value.numel() == value.shape[-1] and labels.meta["val"].shape[-1] == 1:
            return _Code(labels, float(number), value)
    log.debug("merge_label_rows: %s looks nothing up", leaf.name)
    return None
