"""What a typed ONNX graph computes on a device that has 16-bit floats, on a CPU that has none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
# give back values that they were given, or the largest of them
MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Max",
    "MaxPool", "Min", "Pad", "Relu", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze", "Where",
})  # fmt: skip


def has_halves(model: ir.Model) -> bool:
    """Whether some value or weight is a 16-bit float."""
    return any(value.dtype in HALVES for value in _values(model.graph))


def rounded(model: ir.Model) -> ir.Model:
    """A copy that computes in fp32 and rounds each value that the model holds in 16 bit to what those hold of it.

        a (half) ── Conv ── y (half)        a ── Conv ── Cast(half) ── Cast(float) ── y

    ONNX Runtime's CPU has kernels neither for most operators of float16 nor for any of bfloat16; float16 it computes in
    fp32 and takes the roundings between them away ("InsertedPrecisionFreeCast"), so that only weights lose bits and
    an overflow does not show. A pair of Casts that the graph has itself stays. Sums are in fp32, as those of tensor
    cores are; what a kernel rounds inside of itself is not seen. Inputs and outputs of the graph keep their types.
    """
    copy = model.clone()
    graph = copy.graph
    ends = {value: value.dtype for value in (*graph.inputs, *graph.outputs) if value.dtype in HALVES}
    kinds = {value: value.dtype for value in _values(graph) if value.dtype in HALVES}
    for value in kinds:
        value.type = ir.TensorType(ir.DataType.FLOAT)
        if value.const_value is not None:
            value.const_value = ir.Tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    for node in list(graph):
        _widen_attributes(node)
        for value in node.outputs:
            if value in kinds and node.op_type not in MOVES:
                _round(graph, node, value, kinds[value])
    _narrow_ends(graph, ends)
    return copy


def _narrow_ends(graph: ir.Graph, ends: Mapping[ir.Value, ir.DataType | None]) -> None:
    """Casts behind inputs and in front of outputs that were half."""
    for value in graph.inputs:
        if value in ends:
            wide = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}_wide")
            _describe(wide, f"{value.name}_wide", ir.DataType.FLOAT, value.shape)
            value.type = ir.TensorType(ends[value])  # type: ignore[arg-type]
            for user, index in list(value.uses()):
                if user is not wide:
                    user.replace_input_with(index, wide.outputs[0])
            graph.insert_before(graph[0], wide)
    for index, value in enumerate(list(graph.outputs)):
        if value in ends:
            narrow = ir.node("Cast", [value], {"to": ends[value]}, name=f"{value.name}_narrow")
            _describe(narrow, str(value.name), ends[value], value.shape)
            value.name = f"{value.name}_wide"
            graph.append(narrow)
            graph.outputs[index] = narrow.outputs[0]


def _describe(node: ir.Node, name: str, dtype: ir.DataType | None, shape: ir.Shape | None) -> None:
    result = node.outputs[0]
    result.name, result.shape, result.type = name, shape, ir.TensorType(dtype)  # type: ignore[arg-type]


def _values(graph: ir.Graph) -> list[ir.Value]:
    made = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *made]


def _widen_attributes(node: ir.Node) -> None:
    to, held = node.attributes.get("to"), node.attributes.get("value")
    if to is not None and to.as_int() in HALVES:
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    if held is not None and held.type == ir.AttributeType.TENSOR and held.as_tensor().dtype in HALVES:
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(held.as_tensor().numpy().astype(np.float32)))


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, kind: ir.DataType) -> None:
    down = ir.node("Cast", [value], {"to": kind}, name=f"{value.name}_down")
    up = ir.node("Cast", [down.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{value.name}_up")
    for cast, dtype in ((down, kind), (up, ir.DataType.FLOAT)):
        cast.outputs[0].name, cast.outputs[0].shape = cast.name, value.shape
        cast.outputs[0].type = ir.TensorType(dtype)
    graph.insert_after(node, [down, up])
    for user, index in list(value.uses()):
        if user is not down:
            user.replace_input_with(index, up.outputs[0])
