from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
SEEDS = {aten.linear.default, aten.matmul.default}
SUMS = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
POINTWISE = {
    aten.relu.default, aten.gelu.default, aten.tanh.default, aten.sigmoid.default, aten.sin.default, aten.cos.default,
}  # fmt: skip
# operator -> the positions of its arguments that are axes
AXES: dict[Any, tuple[int, ...]] = {
    aten.softmax.int: (1,), aten.transpose.int: (1, 2), aten.unflatten.int: (1,), aten.slice.Tensor: (1,),
    aten.cat.default: (1,),
}  # fmt: skip


@exact
def eliminate_unit_batch(program: Program) -> int:
    """Drop the batch axis of size 1 from attention and the layers around it.

        x (1, T, C) ── linear ── split (1, T, h, d) ── swap ── (1, h, T, d) ── @
        x (T, C) ── linear ── split (T, h, d) ── swap ── (h, T, d) ── @

    Why: converters whose product has three axes write a reshape around every operand of four, and every one is an
    operator of the artifact: 44 of the 379 of EdgeSAM's mask decoder in TFLite. Starts at linear layers and products
    of one prompt and follows what lies between them; maps of convolutions keep their four axes. Exact: no value is
    computed otherwise. Does nothing for a batch of several prompts. Site = an operator.
    """
    flat: dict[Node, Node] = {}  # (1, ...) -> the same values without that axis
    sites = 0
    with AtenGraph(program) as graph:
        for seed in graph.calls(*SEEDS):
            _flatten_sources(graph, seed, flat)
        for node in graph.calls(*SEEDS, *SUMS, *POINTWISE, *AXES, aten.layer_norm.default, aten.permute.default,
                                aten.flatten.using_ints):  # fmt: skip
            write = _rewritten(graph, node, flat)
            if write is None:
                log.debug("eliminate_unit_batch: %s keeps its batch axis", node.name)
                continue
            with graph.graph.inserting_before(node):
                small = write()
                back = graph.call(aten.unsqueeze.default, small, 0)
            flat[back] = small
            graph.replace(node, back)
            sites += 1
    return sites


def _flatten_sources(graph: AtenGraph, seed: Node, flat: dict[Node, Node]) -> None:
    """Drop the axis of what a seed reads where it is made, so that its other readers, sums for one, can follow."""
    for source in seed.all_input_nodes:
        if source not in flat and _has_unit_batch(source) and not _is_weight(graph, source):
            with graph.graph.inserting_after(source):
                flat[source] = graph.call(aten.squeeze.dim, source, 0)


def _has_unit_batch(node: Node) -> bool:
    size = shape(node)
    return len(size) >= 3 and isinstance(size[0], int) and size[0] == 1


def _rewritten(graph: AtenGraph, node: Node, flat: dict[Node, Node]) -> Callable[[], Node] | None:
    """What writes the operator without the first axis; None where it has none of size 1, or works along it."""
    if not _has_unit_batch(node):
        return None
    tensors = [n for n in node.all_input_nodes if not _is_weight(graph, n)]
    if any(len(shape(n)) >= 3 and shape(n)[0] != 1 for n in tensors):
        return None
    if node.target not in SEEDS and not any(n in flat for n in tensors):
        return None
    arguments = _arguments(node)
    if arguments is None:
        return None
    rank = max(len(shape(n)) for n in node.all_input_nodes)

    def write() -> Node:
        mapped = torch.fx.node.map_arg(arguments, lambda n: _without(graph, n, rank, flat))
        return graph.call(node.target, *mapped, **node.kwargs)  # type: ignore[arg-type]

    return write


def _is_weight(graph: AtenGraph, node: Node) -> bool:
    return graph.constant(node) is not None


def _without(graph: AtenGraph, node: Node, rank: int, flat: dict[Node, Node]) -> Node:
    """``node`` without its first axis if it has all ``rank`` of them; a weight of fewer broadcasts as before."""
    if len(shape(node)) < rank:
        return node
    if node not in flat:
        flat[node] = graph.call(aten.squeeze.dim, node, 0)
    return flat[node]


def _arguments(node: Node) -> tuple[Any, ...] | None:
    """The operator's arguments with every axis one less, counted from the front; None if it touches the first."""
    arguments: list[Any] = list(node.args)
    source = arguments[0][0] if isinstance(arguments[0], (list, tuple)) else arguments[0]
    rank = len(shape(source))
    if node.target == aten.permute.default:
        dims = [d % rank for d in argument(node, 1, "dims")]
        return (source, [d - 1 for d in dims[1:]]) if dims[0] == 0 else None
    if node.target == aten.flatten.using_ints:
        start, end = (argument(node, i, name, d) % rank for i, name, d in ((1, "start_dim", 0), (2, "end_dim", -1)))
        return (source, start - 1, end - 1) if start else None
    if node.target == aten.layer_norm.default and len(argument(node, 1, "normalized_shape")) == rank:
        return None
    for position in AXES.get(node.target, ()):
        if position >= len(arguments) or arguments[position] % rank == 0:
            return None
        arguments[position] = arguments[position] % rank - 1
    return tuple(arguments)
