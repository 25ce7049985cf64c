from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from edgesam_deploy.passes.aten.graph import AtenGraph, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

LIMIT = 1 << 26  # elements: a folded constant lives in the artifact, so an expanded one must not blow it up


@exact
def fold_constants(program: Program) -> int:
    """Compute now whatever depends on constants only.

        arange ── sin/cos of the grid ── flatten ──(+)── y        [dense positional encoding (1, 4096, 256)] ──(+)── y

    Why: the reference decoder computes its dense positional encoding in every call, and with it Sin and Cos, which NPUs
    do not run. Exact: the same operators ran, once, here. Site = a value that a live operator reads.
    """
    with AtenGraph(program) as graph:
        values: dict[Node, Tensor] = {}
        for node in list(graph.graph.nodes):
            known = graph.constant(node)
            if known is not None:
                values[node] = known
            elif node.op == "call_function" and _foldable(node, values):
                args, kwargs = map_arg((node.args, node.kwargs), lambda n: values[n])
                values[node] = node.target(*args, **kwargs)
        folded = [(n, v) for n, v in values.items() if n.op == "call_function" and _is_read(n, values)]
        for node, value in folded:
            graph.replace(node, graph.add_constant(f"{node.name}_folded", value))
        return len(folded)


def _foldable(node: Node, values: dict[Node, Tensor]) -> bool:
    value: Any = node.meta.get("val")
    if not isinstance(value, Tensor) or any(not isinstance(d, int) for d in value.shape):
        return False
    nondeterministic = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    size = torch.Size(shape(node)).numel()
    return not nondeterministic and size <= LIMIT and all(n in values for n in node.all_input_nodes)


def _is_read(node: Node, values: dict[Node, Tensor]) -> bool:
    """Whether anything that is not folded itself reads the node."""
    return any(reader not in values for reader in node.users)
