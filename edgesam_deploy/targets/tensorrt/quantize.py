"""8 bit as TensorRT takes them: symmetric Quantize and Dequantize, zero point 0, weights by output channel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesam_deploy.passes.islands import MARK
from edgesam_deploy.passes.onnx.graph import add_initializer, add_node, constant, is_standard
from edgesam_deploy.passes.program import Program
from edgesam_deploy.precision.bias_correction import bias_corrected
from edgesam_deploy.precision.extremes import extremes

Arrays = Mapping[str, NDArray[Any]]
AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 0}  # of the weight's output channels; Gemm with transB
LEAST = 2.0**-14  # a scale is half beside half values, and below this half loses digits


def quantise(program: Program, rows: Sequence[Arrays]) -> list[str]:
    """Quantise a program's convolutions and products with weights, in place; returns their names.

    Ranges are the largest magnitudes over ``rows``, inputs by name. The other summand of a residual sum is quantised as
    well, so that the sum can be part of the convolution's kernel. Norms, softmax and products of two activations stay
    as they are, and so do layers that lowering has marked as kept. Weights keep a pair of Quantize and Dequantize, the
    form that TensorRT's parser is documented for.
    Biases take up what rounding the weights shifts the mean by (``bias_corrected``).
    """
    chosen = {str(node.name) for node in program.onnx.graph if _is_layer(node)}
    for node in program.onnx.graph:  # kept in half: what is marked when the types are given stays fp32
        node.metadata_props.pop(MARK, None)
    proto = ir.to_proto(program.onnx)
    floating = [node.name for node in proto.graph.node if node.name not in chosen]
    bias_corrected(proto, rows, floating, AXIS)
    program.body = ir.from_proto(proto)
    graph = program.onnx.graph
    layers = [node for node in graph if node.name in chosen]
    sites = [(node, 0) for node in layers] + _residuals(graph, layers)
    found = extremes(proto, rows, {str(_read(node, index).name) for node, index in sites})
    largest = {name: max(-low, high) for name, (low, high) in found.items()}
    pairs: dict[ir.Value, ir.Value] = {}
    for node, index in sites:
        value = _read(node, index)
        if value not in pairs:
            pairs[value] = _pair(node, value, np.float32(largest[str(value.name)] / 127), None)
        node.replace_input_with(index, pairs[value])
    for node in layers:
        weight, axis = _read(node, 1), AXIS[node.op_type]
        array = constant(weight)
        assert array is not None
        others = tuple(i for i in range(array.ndim) if i != axis)
        node.replace_input_with(1, _pair(node, weight, np.abs(array).max(others) / np.float32(127), axis))
    return [str(node.name) for node in layers]


def _is_layer(node: ir.Node) -> bool:
    if not is_standard(node, *AXIS) or MARK in node.metadata_props or constant(node.inputs[0]) is not None:
        return False
    weight, transposed = constant(node.inputs[1]), node.attributes.get("transB")
    if weight is None or weight.dtype != np.float32 or (node.op_type == "MatMul" and weight.ndim != 2):
        return False
    return node.op_type != "Gemm" or (transposed is not None and transposed.as_int() == 1)


def _read(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _residuals(graph: ir.Graph, layers: Collection[ir.Node]) -> list[tuple[ir.Node, int]]:
    """The summand that does not come from a quantised layer, of each sum of two activations of which one does."""
    found = []
    for node in graph:
        if not is_standard(node, "Add") or any(constant(value) is not None for value in node.inputs):
            continue
        ours = [_layer_behind(value) in layers for value in node.inputs]
        if any(ours):
            found.append((node, 1 - ours.index(True)))
    return found


def _layer_behind(value: ir.Value | None) -> ir.Node | None:
    """What computes a value, its bias aside."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Add":
        product = [v.producer() for v in node.inputs if v is not None and constant(v) is None]
        return product[0] if len(product) == 1 else node
    return node


def _pair(before: ir.Node, value: ir.Value, scale: NDArray[Any] | np.float32, axis: int | None) -> ir.Value:
    """``value`` quantised and dequantised in front of a node; ``axis``: with a scale for each of its indices."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    held = np.maximum(np.asarray(scale, np.float32), LEAST).astype(np.float16).astype(np.float32)
    step = add_initializer(graph, f"{value.name}_scale", held)
    zero = add_initializer(graph, f"{value.name}_zero", np.zeros(held.shape, np.int8))
    attributes = {} if axis is None else {"axis": axis}
    int8, name, shape = ir.DataType.INT8, f"{value.name}_q", value.shape
    small = add_node(before, "QuantizeLinear", [value, step, zero], attributes, name=name, dtype=int8, shape=shape)
    return add_node(
        before, "DequantizeLinear", [small, step, zero], attributes,
        name=f"{value.name}_dq", dtype=ir.DataType.FLOAT, shape=shape,
    )  # fmt: skip
