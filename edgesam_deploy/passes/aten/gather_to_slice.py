from __future__ import annotations

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten


@exact
def gather_to_slice(program: Program) -> int:
    """Pick one entry along an axis by a slice and a squeeze instead of an index.

        x (B, T, C) ── select(1, 3) ── y (B, C)        x ── slice [3:4] ── squeeze ── y

    Why: an index becomes Gather in ONNX and TFLite; NPU compilers put it on the CPU or refuse it. Exact.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(aten.select.int):
            source, dim, index = node.args[:3]
            assert isinstance(source, Node)
            assert isinstance(dim, int)
            if not isinstance(index, int):
                continue
            size = shape(source)[dim]
            if index < 0:
                if not isinstance(size, int):
                    continue
                index += size
            with graph.graph.inserting_before(node):
                piece = graph.call(aten.slice.Tensor, source, dim, index, index + 1)
                entry = graph.call(aten.squeeze.dim, piece, dim)
            graph.replace(node, entry)
            sites += 1
    return sites
