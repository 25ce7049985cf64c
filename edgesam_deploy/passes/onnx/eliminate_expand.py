from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import constant, is_standard, static_shape
from edgesam_deploy.passes.program import Program

log = logging.getLogger(__name__)
BROADCASTING = (
    "Add", "Sub", "Mul", "Div", "Pow", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor",
    "Where", "Min", "Max", "Mean", "Sum",
)  # fmt: skip
ELEMENTWISE = (
    *BROADCASTING, "Cast", "Not", "Neg", "Abs", "Relu", "Sigmoid", "Tanh", "Sqrt", "Exp", "Log", "Sin", "Cos",
    "Identity",
)  # fmt: skip
Shape = tuple[int, ...]


@exact
def eliminate_expand(program: Program) -> int:
    """Remove an Expand or Tile of axes of size 1 whose readers broadcast anyway, at once or some operators later.

        labels (1, 6, 1) ── Expand (1, 6, 256) ── Equal(-1) ── Cast ── Mul(row) ── y
        labels (1, 6, 1) ── Equal(-1) ── Cast ── Mul(row) ── y

    Why: `expand_as` before comparing labels makes 256 copies of each label and 256 comparisons of the copies; expanded
    masks and position tables cost a copy each, and NPU compilers know neither operator. Exact.
    """
    sites = 0
    for node in list(program.onnx.graph):
        if is_standard(node, "Expand", "Tile") and (shapes := _shapes_without(node)) is not None:
            source, result = node.inputs[0], node.outputs[0]
            assert source is not None
            for value, shape in shapes.items():
                value.shape = ir.Shape(shape)
            ir.convenience.replace_all_uses_with(result, source)
            sites += 1
    if sites:
        common.RemoveUnusedNodesPass()(program.onnx)
    return sites


def _shapes_without(node: ir.Node) -> dict[ir.Value, Shape] | None:
    """The shapes that results take when ``node`` is gone; None where something would notice."""
    small, large = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    if small is None or large is None or small == large or not node.outputs[0].uses():
        return None
    if node.op_type == "Tile" and not _repeats_ones(node, small):
        return None
    shapes = {node.outputs[0]: small}
    for value in (waiting := [node.outputs[0]]):
        if value.is_graph_output():
            return None
        for user, _ in value.uses():
            after = _shape_after(user, shapes) if user.graph is node.graph else None
            if after is None:
                log.debug("eliminate_expand: %s stays for %s", node.name, user.op_type)
                return None
            result = user.outputs[0]
            if after != static_shape(result) and shapes.get(result) != after:
                shapes[result] = after
                waiting.append(result)
            elif after == static_shape(result):
                shapes.pop(result, None)
    del shapes[node.outputs[0]]
    return shapes


def _repeats_ones(node: ir.Node, small: Shape) -> bool:
    """Whether a Tile is known to repeat axes of length 1 only, as an Expand does."""
    repeats = constant(node.inputs[1])
    return repeats is not None and all(n == 1 or size == 1 for n, size in zip(repeats.tolist(), small, strict=True))


def _shape_after(user: ir.Node, shapes: dict[ir.Value, Shape]) -> Shape | None:
    """The shape of an elementwise operator's result, given the new ``shapes``; None for another operator."""
    if not is_standard(user, *ELEMENTWISE):
        return None
    inputs = [shapes.get(v, static_shape(v)) for v in user.inputs if v is not None]
    known = [shape for shape in inputs if shape is not None]
    return np.broadcast_shapes(*known) if len(known) == len(inputs) else None
