from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import add_initializer, add_node, constant, is_standard, replace_value
from edgesam_deploy.passes.program import Program

log = logging.getLogger(__name__)
WHOLE_ROLES = {"labels", "flag"}
MOVES = ("Unsqueeze", "Squeeze", "Reshape", "Expand", "Slice", "Transpose", "Identity")  # elements stay as they are


@exact
def boolean_to_float(program: Program) -> int:
    """Compare the label codes by arithmetic: the result is 0.0 or 1.0 instead of a boolean that is cast.

        Equal(labels, v) ── Cast ── y                Relu(1 - (labels - v)^2) ── y
        Equal(labels, v) ── Not ── Cast ── y         1 - Relu(1 - (labels - v)^2) ── y

    Why: Equal, Not and casts from bool are what NPU compilers refuse in SAM's prompt encoder. Exact for whole numbers:
    one that differs from v differs by 1 or more. So only what the contract says to be whole is compared this way: the
    label codes (-10, -2, -1, 0, 1, 2, 3) and flags.
    """
    whole = {spec.name for spec in program.inputs if spec.role in WHOLE_ROLES}
    graph = program.onnx.graph
    return sum(_rewrite(graph, node, whole) for node in list(graph) if is_standard(node, "Equal"))


def _rewrite(graph: ir.Graph, node: ir.Node, whole: set[str]) -> bool:
    value, code = node.inputs
    if constant(value) is not None:
        value, code = code, value
    number = constant(code)
    if value is None or number is None or value.dtype != ir.DataType.FLOAT or not (number == np.round(number)).all():
        return False
    if _origin(value) not in whole:
        log.debug("boolean_to_float: %s compares what need not be whole numbers", node.name)
        return False
    inverted = [r for r in _readers(node) if is_standard(r, "Not")]
    casts = [r for r in _readers(node) if r not in inverted]
    inverted_casts = [cast for n in inverted for cast in _readers(n)]
    results = [n.outputs[0] for n in (node, *inverted)]
    if not _are_casts(casts + inverted_casts) or any(result.is_graph_output() for result in results):
        log.debug("boolean_to_float: the result of %s is read as a boolean", node.name)
        return False
    indicator = _indicator(graph, node, value, code)
    _replace(graph, casts, indicator)
    if inverted_casts:
        one = add_initializer(graph, f"{node.name}_one", np.array(1.0, np.float32))
        shape = node.outputs[0].shape
        opposite = add_node(node, "Sub", [one, indicator], dtype=ir.DataType.FLOAT, shape=shape)
        _replace(graph, inverted_casts, opposite)
    for unread in (*inverted, node):
        graph.remove(unread, safe=True)
    return True


def _origin(value: ir.Value) -> str | None:
    """The graph input whose elements ``value`` has."""
    producer = value.producer()
    while producer is not None and is_standard(producer, *MOVES) and producer.inputs[0] is not None:
        value = producer.inputs[0]
        producer = value.producer()
    return value.name if value.is_graph_input() else None


def _readers(node: ir.Node) -> list[ir.Node]:
    return list(dict.fromkeys(use.node for use in node.outputs[0].uses()))


def _are_casts(nodes: Iterable[ir.Node]) -> bool:
    return all(is_standard(node, "Cast") and _gives_float(node) for node in nodes)


def _gives_float(cast: ir.Node) -> bool:
    return cast.attributes["to"].as_int() == ir.DataType.FLOAT and not cast.outputs[0].is_graph_output()


def _indicator(graph: ir.Graph, node: ir.Node, value: ir.Value, code: ir.Value | None) -> ir.Value:
    one = add_initializer(graph, f"{node.name}_one", np.array(1.0, np.float32))
    kind, shape = ir.DataType.FLOAT, node.outputs[0].shape
    distance = add_node(node, "Sub", [value, code], dtype=kind, shape=shape)
    square = add_node(node, "Mul", [distance, distance], dtype=kind, shape=shape)
    rest = add_node(node, "Sub", [one, square], dtype=kind, shape=shape)
    return add_node(node, "Relu", [rest], dtype=kind, shape=shape)


def _replace(graph: ir.Graph, casts: list[ir.Node], value: ir.Value) -> None:
    for cast in casts:
        replaced = replace_value(cast.outputs[0], value)
        assert replaced, "no output of the graph is among them"
        graph.remove(cast, safe=True)
