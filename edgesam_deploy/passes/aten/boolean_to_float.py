from __future__ import annotations

import logging
from typing import Any

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.eliminate_identity import ALWAYS, CHECKS
from edgesam_deploy.passes.aten.graph import AtenGraph
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
EQUAL, UNEQUAL = {aten.eq.Scalar, aten.eq.Tensor}, {aten.ne.Scalar, aten.ne.Tensor}
AT_LEAST, AT_MOST = {aten.ge.Scalar, aten.ge.Tensor}, {aten.le.Scalar, aten.le.Tensor}
ABOVE, BELOW = {aten.gt.Scalar, aten.gt.Tensor}, {aten.lt.Scalar, aten.lt.Tensor}
CASTS = {aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.type_as.default}
INTEGRAL_ROLES = {"labels", "flag"}
# of whole numbers they make whole numbers
INTEGRAL = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.rsub.Scalar, aten.neg.default, aten.cat.default,
    aten.stack.default, aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default, aten.reshape.default,
    aten.view.default, aten.flatten.using_ints, aten.slice.Tensor, aten.select.int, aten.permute.default,
    aten.transpose.int, aten.to.dtype, aten._to_copy.default, *ALWAYS,
}  # fmt: skip


@exact
def boolean_to_float(program: Program) -> int:
    """Compare whole numbers by arithmetic: the result is 0.0 or 1.0 instead of a boolean that is cast.

        (labels == v) ── cast ── * row        relu(1 - (labels - v)^2) ── * row
        (labels >= v) ── cast ── * row        relu(1 - relu(v - labels)) ── * row

    Why: Equal, Greater and casts from bool are what NPU compilers refuse in SAM's prompt encoder (7 of them in the
    decoder). Exact for whole numbers: one that differs from v differs by 1 or more. So only values that are whole by
    the contract are compared this way: the label codes (-10, -2, -1, 0, 1, 2, 3), flags, and sums and products of them.
    """
    roles = {spec.name: spec.role for spec in program.inputs}
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(*EQUAL, *UNEQUAL, *AT_LEAST, *AT_MOST, *ABOVE, *BELOW):
            dtype = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
            if not dtype.is_floating_point or not all(is_whole(graph, roles, a) for a in node.args):
                log.debug("boolean_to_float: %s compares what need not be whole numbers", node.name)
            elif not all(reads_as(reader, dtype) for reader in readers(node)):
                log.debug("boolean_to_float: the result of %s is read as a boolean", node.name)
            else:
                with graph.graph.inserting_before(node):
                    value = _indicator(graph, node)
                for cast in [r for r in readers(node) if r.target in CASTS]:
                    graph.replace(cast, value)
                drop_checks(graph, node)
                graph.replace(node, value)
                sites += 1
    return sites


def is_whole(graph: AtenGraph, roles: dict[str, Any], value: Any) -> bool:
    """Whether a value is a whole number whatever the inputs: by the contract, by its type, or by how it is made."""
    if isinstance(value, (list, tuple)):
        return all(is_whole(graph, roles, v) for v in value)
    if not isinstance(value, Node):
        return not isinstance(value, float) or value.is_integer()
    known = graph.constant(value)
    if known is not None:
        return bool((known == known.round()).all())
    if value.op == "placeholder":
        return roles.get(value.name) in INTEGRAL_ROLES or not value.meta["val"].dtype.is_floating_point
    whole_type = not getattr(value.meta["val"], "dtype", torch.int64).is_floating_point  # sizes have no dtype
    made = value.target in INTEGRAL and all(is_whole(graph, roles, a) for a in (*value.args, *value.kwargs.values()))
    return whole_type or made


def readers(node: Node) -> list[Node]:
    """What reads a node, the tracer's own assertions about its type apart."""
    return [r for r in node.users if r.target not in CHECKS]


def drop_checks(graph: AtenGraph, node: Node) -> None:
    """Remove the tracer's assertions about a node whose type changes."""
    for check in [r for r in node.users if r.target in CHECKS]:
        graph.graph.erase_node(check)


def reads_as(reader: Node, dtype: torch.dtype) -> bool:
    """Whether ``reader`` takes a number of ``dtype`` as well as a boolean: a cast to it or a product of that type."""
    takes = reader.target in CASTS or reader.target == aten.mul.Tensor
    return takes and reader.meta["val"].dtype == dtype


def _indicator(graph: AtenGraph, node: Node) -> Node:
    a, b = node.args[:2]
    if node.target in EQUAL | UNEQUAL:
        distance = _difference(graph, a, b)
        equal = _one_minus(graph, graph.call(aten.mul.Tensor, distance, distance))
        return equal if node.target in EQUAL else graph.call(aten.rsub.Scalar, equal, 1)
    low, high = (b, a) if node.target in AT_LEAST | ABOVE else (a, b)
    short = _difference(graph, low, high)  # how much is missing to low <= high
    if node.target in ABOVE | BELOW:
        short = graph.call(aten.add.Tensor, short, 1)  # low < high is low + 1 <= high
    return _one_minus(graph, graph.call(aten.relu.default, short))


def _difference(graph: AtenGraph, a: Any, b: Any) -> Node:
    return graph.call(aten.sub.Tensor, a, b) if isinstance(a, Node) else graph.call(aten.rsub.Scalar, b, a)


def _one_minus(graph: AtenGraph, x: Node) -> Node:
    return graph.call(aten.relu.default, graph.call(aten.rsub.Scalar, x, 1))
