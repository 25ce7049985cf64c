from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
ELEMENTWISE = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor,
    aten.relu.default, aten.gelu.default, aten.tanh.default, aten.sigmoid.default,
}  # fmt: skip
OPEN = 1 << 31  # an end beyond it is no number of rows but "to the last"
Operands = list[tuple[int, int]]  # position of an argument, the axis of its rows


@exact
def eliminate_dead_rows(program: Program) -> int:
    """Compute only the rows that somebody reads.

        x (B, 10, C) ── attention ── + ── norm ── [:, :5]        x ── [:, :5] ── attention ── + ── norm

    Why: the mask decoder's last attention asks the image for every token, but only the output tokens are read: with 5
    points half of the rows, with 20 points 5 of 25, and few enough for the image's projections to be absorbed again.
    A chain of operators that treat each row by itself is computed for the rows from the first to the last that are
    read; the chain ends where something else needs all rows. Exact: the rows do not meet. Site = a chain.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in reversed(list(graph.graph.nodes)):
            found = _read_rows(node)
            if found is not None and _operands(node, found[0]) is not None:
                _narrow_readers(graph, node, *found)
                sites += 1
            if not node.users and not node.is_impure():  # at once: what it read has one reader less
                graph.graph.erase_node(node)
    return sites


def _read_rows(node: Node) -> tuple[int, int, int] | None:
    """Axis, first row and end of what is read of ``node``, where that is less than all of it."""
    spans = [_span(reader, node) for reader in node.users]
    if not spans or None in spans or len({span[0] for span in spans if span is not None}) != 1:
        return None
    axis, first, end = spans[0][0], min(s[1] for s in spans), max(s[2] for s in spans)  # type: ignore[index]
    rows = shape(node)[axis]
    return None if isinstance(rows, int) and (first, end) == (0, rows) else (axis, first, end)


def _span(reader: Node, source: Node) -> tuple[int, int, int] | None:
    """Axis, first row and end that ``reader`` takes of ``source``; None where it is no slice, or not a static one."""
    axis = argument(reader, 1, "dim", 0)
    if reader.target == aten.select.int:
        first = argument(reader, 2, "index")
        end = first + 1 if isinstance(first, int) else None
    elif reader.target == aten.slice.Tensor and argument(reader, 4, "step", 1) == 1:
        first, end = argument(reader, 2, "start") or 0, argument(reader, 3, "end")
    else:
        return None
    axis %= len(shape(source))
    rows = shape(source)[axis]
    if not (isinstance(first, int) and isinstance(end, int)):
        return None
    if isinstance(rows, int):
        first, end = first + rows * (first < 0), min(end + rows * (end < 0), rows)
    elif end > OPEN:
        return None
    return (axis, first, end) if 0 <= first < end else None


def _narrow_readers(graph: AtenGraph, node: Node, axis: int, first: int, end: int) -> None:
    rows = _Rows(graph).of(node, axis, first, end)
    for reader in list(node.users):
        span = _span(reader, node)
        assert span is not None
        with graph.graph.inserting_before(reader):
            if reader.target == aten.select.int:
                piece = graph.call(aten.select.int, rows, axis, span[1] - first)
            elif span[1:] == (first, end):
                piece = rows
            else:
                piece = graph.call(aten.slice.Tensor, rows, axis, span[1] - first, span[2] - first)
        graph.replace(reader, piece)


class _Rows:
    """Rows of nodes, each cut or computed once."""

    def __init__(self, graph: AtenGraph) -> None:
        self.graph = graph
        self.cuts: dict[tuple[Node, int, int, int], Node] = {}

    def of(self, node: Node, axis: int, first: int, end: int) -> Node:
        """``node`` with its rows ``first`` to ``end`` along ``axis`` alone, computed so."""
        operands = _operands(node, axis)
        assert operands is not None
        args = list(node.args)
        for position, own in operands:
            args[position] = self._needed(args[position], own, first, end)  # type: ignore[arg-type]
        with self.graph.graph.inserting_before(node):
            return self.graph.call(node.target, *args, **node.kwargs)  # type: ignore[arg-type]

    def _needed(self, node: Node, axis: int, first: int, end: int) -> Node:
        """The rows by computing less where nobody else needs the rest, else by cutting them out."""
        if only_reader(node) and _operands(node, axis) is not None:
            return self.of(node, axis, first, end)
        if node.target == aten.cat.default and argument(node, 1, "dim", 0) % len(shape(node)) == axis:
            start = 0
            for piece in node.args[0]:  # type: ignore[union-attr]
                length = shape(piece)[axis]
                if not isinstance(length, int):
                    break
                if (start, start + length) == (first, end):
                    return piece  # type: ignore[return-value]
                start += length
        return self._cut(node, axis, first, end)

    def _cut(self, node: Node, axis: int, first: int, end: int) -> Node:
        key = (node, axis, first, end)
        if key not in self.cuts:
            behind = node
            while behind.next.op == "placeholder":  # inputs come first
                behind = behind.next
            with self.graph.graph.inserting_after(behind):
                self.cuts[key] = self.graph.call(aten.slice.Tensor, node, axis, first, end)
        return self.cuts[key]


def _operands(node: Node, axis: int) -> Operands | None:
    """Which arguments have the rows, and on which axis, where ``node`` treats rows along ``axis`` by themselves."""
    rule = _RULES.get(node.target)
    if node.target in ELEMENTWISE:
        rule = _elementwise
    found = None if rule is None else rule(node, axis)
    return found if found else None


def _elementwise(node: Node, axis: int) -> Operands:
    """A term that is the same for all rows is left as it is."""
    rank = len(shape(node))
    terms = [(i, axis - rank + len(shape(a)), a) for i, a in enumerate(node.args) if isinstance(a, Node)]
    return [(i, own) for i, own, term in terms if own >= 0 and str(shape(term)[own]) != "1"]


def _before_last(count: int) -> Any:
    """Rows of an operator that works along the last ``count`` axes of its first argument."""
    return lambda node, axis: [(0, axis)] if axis < len(shape(node)) - count else None


def _softmax(node: Node, axis: int) -> Operands | None:
    return [(0, axis)] if int(node.args[1]) % len(shape(node)) != axis else None  # type: ignore[arg-type]


def _matmul(node: Node, axis: int) -> Operands | None:
    """Rows of the first factor, or columns of the second."""
    a, b = (len(shape(factor)) for factor in node.args[:2])
    if min(a, b) < 2:
        return None
    return {2: [(0, a - 2)], 1: [(1, b - 1)]}.get(len(shape(node)) - axis)


def _transpose(node: Node, axis: int) -> Operands:
    first, second = (int(a) % len(shape(node)) for a in node.args[1:3])  # type: ignore[arg-type]
    return [(0, {first: second, second: first}.get(axis, axis))]


def _flatten(node: Node, axis: int) -> Operands | None:
    rank = len(shape(node.args[0]))
    start, end = argument(node, 1, "start_dim", 0) % rank, argument(node, 2, "end_dim", -1) % rank
    if axis == start:
        return [(0, axis)] if start == end else None
    return [(0, axis if axis < start else axis + end - start)]


def _unflatten(node: Node, axis: int) -> Operands | None:
    dim, count = int(node.args[1]) % len(shape(node.args[0])), len(node.args[2])  # type: ignore[arg-type]
    if dim <= axis < dim + count:
        return None
    return [(0, axis if axis < dim else axis - count + 1)]


_RULES: dict[Any, Any] = {
    aten.layer_norm.default: lambda node, axis: _before_last(len(node.args[1]))(node, axis),
    aten.linear.default: _before_last(1),
    aten.softmax.int: _softmax,
    aten.matmul.default: _matmul,
    aten.transpose.int: _transpose,
    aten.flatten.using_ints: _flatten,
    aten.unflatten.int: _unflatten,
}
