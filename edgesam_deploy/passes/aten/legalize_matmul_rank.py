from __future__ import annotations

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
VIEWS = {aten.reshape.default, aten.view.default, aten.flatten.using_ints}


@exact
def legalize_matmul_rank(program: Program) -> int:
    """Give products of three axes a fourth, of size 1, where the views around them can take it in.

        filters (B, M, C) @ flatten(map) (B, C, P) ── unflatten        (B, 1, M, C) @ (B, 1, C, P) ── view

    Why: Apple's Neural Engine computes on tensors of four axes. SAM's masks are such a product of filters with a map,
    and the views that lead to it and from it are there anyway. Exact: nothing is computed otherwise. Products with a
    constant are layers, and stay.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(aten.matmul.default):
            operands = node.args[:2]
            if any(len(shape(n)) != 3 or graph.constant(n) is not None for n in operands):
                continue
            with graph.graph.inserting_before(node):
                lifted = graph.call(aten.matmul.default, *(_lifted(graph, n) for n in operands))  # type: ignore[arg-type]
            _lower(graph, node, lifted)
            sites += 1
    return sites


def _lifted(graph: AtenGraph, node: Node) -> Node:
    """(B, R, C) as (B, 1, R, C)."""
    if node.target in VIEWS and only_reader(node):
        return graph.call(aten.reshape.default, node.args[0], [-1, 1, *shape(node)[1:]])
    return graph.call(aten.unsqueeze.default, node, 1)


def _lower(graph: AtenGraph, node: Node, lifted: Node) -> None:
    """Let the readers of ``node`` read ``lifted`` (B, 1, R, C) as they knew it."""
    reader = next(iter(node.users)) if only_reader(node) else None
    if reader is not None and reader.target == aten.unflatten.int and argument(reader, 1, "dim") in (2, -1):
        with graph.graph.inserting_before(reader):
            view = graph.call(aten.reshape.default, lifted, [-1, *shape(reader)[1:]])
        graph.replace(reader, view)
        return
    with graph.graph.inserting_before(node):
        rows = graph.call(aten.squeeze.dim, lifted, 1)
    graph.replace(node, rows)
