"""8 bit as CPU kernels are fast with: the trunk of convolutions stays in uint8 from end to end.

    x ── Conv ── Gelu ── Conv ── Add          every tensor between: QuantizeLinear, DequantizeLinear (uint8, zero point)
                                              weights int8 by output channel, biases int32

ONNX Runtime makes QLinearConv, QLinearAdd, QLinearMul and QLinearSigmoid of the operators between such pairs. It has no
8-bit GELU, and between 8-bit convolutions an fp32 one costs three passes over the map. So x Phi(x) becomes
x sigmoid(1.702 x) (Hendrycks and Gimpel 2016, section 2): a table of 256 entries and a product, off by at most 0.0203.
What that shifts the mean of the next layer by goes into its bias, as does what rounding the weights does.

OpenVINO computes GELU and sums inside of the convolution before them and quantises its result there (``fused``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgesam_deploy.passes.onnx.eliminate_dead import eliminate_dead
from edgesam_deploy.passes.onnx.graph import add_initializer, add_node, constant, is_standard
from edgesam_deploy.passes.program import Program
from edgesam_deploy.precision.bias_correction import bias_corrected
from edgesam_deploy.precision.extremes import extremes
from edgesam_deploy.precision.probes import probe_session

Arrays = Mapping[str, NDArray[Any]]
SLOPE = 1.702
SUMS = ("Add", "Mul")
LEAST = np.float32(1e-8)  # of a scale: a dead channel has none of its own
WIDEST = 2**30  # of a bias in its steps
FEW = 8  # input channels: of the three colours QLinearConv makes 7 ms where fp32 takes 1 (512 pixels, one thread)
CHANNELS = 0  # axis of a convolution's weight


def quantise(program: Program, rows: Sequence[Arrays], *, fused: bool = False) -> list[str]:
    """Quantise a program's convolutions, and the sums, products and GELUs between them, in place; the layers' names.

    Ranges are those of ``rows``, inputs by name. Convolutions of single pixels (squeeze and excitation) and of the
    three colours, norms and matrix products stay float. ``fused``: only what convolutions read is 8 bit, that of the
    colours too, and what sums read whose results are; the rest is for a runtime that computes it inside of the
    convolution before, in fp32, the exact GELU as well.
    """
    few = 0 if fused else FEW
    _correct_biases(program, rows, few)
    if not fused:
        _gelu_by_sigmoid(program, rows)
    _pool_means(program)
    graph = program.onnx.graph
    layers = [node for node in graph if _is_layer(node, few)]
    trunk = {value for node in layers for value in node.inputs[:1] if value is not None}
    if not fused:
        trunk |= {node.outputs[0] for node in layers}
    joining = _summed if fused else _joining
    while True:
        joined = {value for node in graph for value in joining(node, trunk)} - trunk
        if not joined:
            break
        trunk |= joined
    outputs = set(graph.outputs)
    ordered = [value for value in _values(graph) if value in trunk and (value not in outputs or value.uses())]
    found = extremes(ir.to_proto(program.onnx), rows, {str(value.name) for value in ordered})
    for value in ordered:
        _pair(graph, value, *found[str(value.name)])
    for node in layers:
        _quantise_weights(node)
    names = [str(node.name) for node in layers]
    eliminate_dead(program)  # the float weights
    return names


def _joining(node: ir.Node, trunk: Set[ir.Value]) -> list[ir.Value]:
    """What becomes 8 bit with a node that reads 8 bit: of a sum or product of maps both sides, too."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    if is_standard(node, *SUMS):
        maps = all(constant(value) is None and _is_map(value) for value in node.inputs)
        return values if maps and any(value in trunk for value in node.inputs) else []
    if is_standard(node, "GlobalAveragePool"):
        return values if values[0] in trunk else []
    steep = values[0].producer() if is_standard(node, "Sigmoid") else None
    return values[1:] if steep is not None and _steep(steep) is not None and steep.inputs[0] in trunk else []


def _summed(node: ir.Node, trunk: Set[ir.Value]) -> list[ir.Value]:
    """The maps that a sum or product reads whose result is 8 bit."""
    maps = [value for value in node.inputs if value is not None and constant(value) is None and _is_map(value)]
    return maps if is_standard(node, *SUMS) and len(maps) == 2 and node.outputs[0] in trunk else []


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


def _is_map(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 4


def _is_layer(node: ir.Node, few: int = FEW) -> bool:
    weight = constant(node.inputs[1]) if is_standard(node, "Conv") else None
    if weight is None or (weight.shape[1] < few and weight.shape[0] != _groups(node)):
        return False
    value = node.inputs[0]
    return value is not None and _is_map(value) and value.shape is not None and value.shape[2] != 1


def _groups(node: ir.Node) -> int:
    attribute = node.attributes.get("group")
    return 1 if attribute is None else int(attribute.as_int())


def _correct_biases(program: Program, rows: Sequence[Arrays], few: int) -> None:
    proto = ir.to_proto(program.onnx)
    layers = {str(node.name) for node in program.onnx.graph if _is_layer(node, few)}
    floating = [node.name for node in proto.graph.node if node.name not in layers]
    bias_corrected(proto, rows, floating, {"Conv": CHANNELS})
    program.body = ir.from_proto(proto)


def _gelu_by_sigmoid(program: Program, rows: Sequence[Arrays]) -> None:
    """Rewrite each exact GELU behind a layer, and move the shift of its mean into the 1x1 convolution that reads it."""
    after = {node.outputs[0] for node in program.onnx.graph if _is_layer(node)}
    sites = [node for node in program.onnx.graph if is_standard(node, "Gelu") and node.inputs[0] in after]
    exact = _channel_means(program, rows, [node.outputs[0] for node in sites])
    made = []
    for node in sites:
        x, y = node.inputs[0], node.outputs[0]
        assert x is not None
        slope = add_initializer(_graph(node), f"{x.name}_slope", np.array(SLOPE, np.float32))
        steep = add_node(node, "Mul", [x, slope], name=f"{x.name}_steep", shape=x.shape)
        gate = add_node(node, "Sigmoid", [steep], name=f"{x.name}_gate", shape=x.shape)
        product = add_node(node, "Mul", [x, gate], name=f"{x.name}_gelu", shape=x.shape)
        y.replace_all_uses_with(product)
        _graph(node).remove(node, safe=True)
        made.append(product)
    for value, before, now in zip(made, exact, _channel_means(program, rows, made), strict=True):
        for reader in {usage.node for usage in value.uses()}:
            if is_standard(reader, "Conv") and len(reader.inputs) == 3:
                _shift_bias(reader, before - now)


def _pool_means(program: Program) -> None:
    """The mean of a map, taken in two steps for fp32's sake, as the pool whose 8-bit form sums in int32."""
    graph = program.onnx.graph
    for node in list(graph):
        if not is_standard(node, "ReduceMean") or not _is_map(node.inputs[0]) or len(node.inputs) != 2:
            continue
        axes, last = _axes(node), node
        readers = [usage.node for usage in node.outputs[0].uses()]
        if axes == {3} and len(readers) == 1 and is_standard(readers[0], "ReduceMean") and _axes(readers[0]) == {2}:
            axes, last = {2, 3}, readers[0]
        if axes != {2, 3} or last.outputs[0].shape is None or len(last.outputs[0].shape) != 4:
            continue
        pooled = add_node(
            last, "GlobalAveragePool", [node.inputs[0]], name=f"{last.outputs[0].name}_pool",
            shape=last.outputs[0].shape,
        )  # fmt: skip
        last.outputs[0].replace_all_uses_with(pooled)
        graph.remove(last, safe=True)
        if last is not node:
            graph.remove(node, safe=True)


def _axes(node: ir.Node) -> set[int]:
    axes = constant(node.inputs[1]) if len(node.inputs) == 2 else None
    return set() if axes is None else {int(axis) % 4 for axis in np.atleast_1d(axes)}


def _graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _shift_bias(layer: ir.Node, shift: NDArray[np.float64]) -> None:
    weight, bias = constant(layer.inputs[1]), constant(layer.inputs[2])
    if weight is None or bias is None or weight.shape[1] != shift.shape[0]:  # grouped: no 1x1 convolution of a GELU is
        return
    moved = bias + weight.sum((2, 3)).astype(np.float64) @ shift
    layer.replace_input_with(2, add_initializer(_graph(layer), f"{layer.name}_bias", moved.astype(np.float32)))


def _channel_means(program: Program, rows: Sequence[Arrays], values: Sequence[ir.Value]) -> list[NDArray[np.float64]]:
    """(channels,) of each map (1, C, H, W), over rows and positions."""
    proto = ir.to_proto(program.onnx)
    del proto.graph.output[:]
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3]), "probe.axes"))
    for index, value in enumerate(values):
        result = f"probe.{index}"
        proto.graph.node.append(helper.make_node("ReduceMean", [str(value.name), "probe.axes"], [result], keepdims=0))
        proto.graph.output.append(helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, None))
    if not values:
        return []
    session = probe_session(proto, "calibrating")
    found = [session.run(None, dict(row)) for row in rows]
    return [np.mean([row[index] for row in found], 0, np.float64) for index in range(len(values))]


def _scale(low: float, high: float) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Step and zero point of uint8 over a range that holds 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = np.maximum(np.asarray((high - low) / 255, np.float32), LEAST)
    return step, np.asarray(np.clip(round(-low / float(step)), 0, 255), np.uint8)


def _pair(graph: ir.Graph, value: ir.Value, low: float, high: float) -> None:
    """Quantise a value where it is made, for everyone who reads it.

    What a sigmoid reads times ``SLOPE`` is the same 8 bits with another step, so that no product is computed.
    """
    producer = value.producer()
    if producer is not None and is_standard(producer, "Sigmoid"):
        low, high = 0.0, 255 / 256
    step, zero = _scale(low, high)
    readers = [(usage.node, usage.idx) for usage in value.uses()]
    first = min((node for node, _ in readers), key=list(graph).index)
    scale = add_initializer(graph, f"{value.name}_scale", step)
    point = add_initializer(graph, f"{value.name}_zero", zero)
    small = add_node(
        first, "QuantizeLinear", [value, scale, point], name=f"{value.name}_q", dtype=ir.DataType.UINT8,
        shape=value.shape,
    )  # fmt: skip
    wide = _dequantised(first, small, scale, point, f"{value.name}_dq", value)
    for node, index in readers:
        steep = _steep(node)
        if steep is None:
            node.replace_input_with(index, wide)
            continue
        larger = add_initializer(graph, f"{value.name}_steep_scale", np.asarray(step * np.float32(SLOPE)))
        steep.replace_all_uses_with(_dequantised(node, small, larger, point, f"{value.name}_steep_dq", value))
        graph.remove(node, safe=True)


def _steep(node: ir.Node) -> ir.Value | None:
    """The result of a product with ``SLOPE`` for a sigmoid."""
    if not is_standard(node, "Mul") or node.outputs[0].name is None or not node.outputs[0].name.endswith("_steep"):
        return None
    return node.outputs[0]


def _dequantised(
    before: ir.Node, small: ir.Value, scale: ir.Value, point: ir.Value, name: str, like: ir.Value
) -> ir.Value:
    return add_node(
        before, "DequantizeLinear", [small, scale, point], name=name, dtype=ir.DataType.FLOAT, shape=like.shape
    )


def _quantise_weights(node: ir.Node) -> None:
    """Weights in int8, the bias in int32 with the step that the layer's input and weights make together."""
    source, weight, name = node.inputs[0], constant(node.inputs[1]), str(node.name)
    assert source is not None
    assert weight is not None
    quantised = source.producer()
    assert quantised is not None
    step = constant(quantised.inputs[1])
    assert step is not None
    bias = constant(node.inputs[2]) if len(node.inputs) == 3 else None
    others = tuple(range(1, weight.ndim))
    steps = np.maximum(np.abs(weight).max(others) / np.float32(127), LEAST)
    if bias is not None:  # in steps of the weights times the input's: of a channel without weights int32 would overflow
        steps = np.maximum(steps, np.abs(bias) / (step * np.float32(WIDEST)))
    steps = steps.astype(np.float32)
    shaped = steps.reshape(-1, *[1] * (weight.ndim - 1))
    small = np.clip(np.round(weight / shaped), -127, 127).astype(np.int8)
    node.replace_input_with(1, _held(node, f"{name}_weight", small, steps))
    if bias is not None:
        product = (steps * step).astype(np.float32)
        node.replace_input_with(2, _held(node, f"{name}_bias", np.round(bias / product).astype(np.int32), product))


def _held(node: ir.Node, name: str, small: NDArray[Any], steps: NDArray[np.float32]) -> ir.Value:
    """A constant in its small form, dequantised by output channel."""
    graph = _graph(node)
    value = add_initializer(graph, f"{name}_q", small)
    scale = add_initializer(graph, f"{name}_scale", steps)
    zero = add_initializer(graph, f"{name}_zero", np.zeros(steps.shape, small.dtype))
    return add_node(
        node, "DequantizeLinear", [value, scale, zero], {"axis": CHANNELS}, name=f"{name}_dq",
        dtype=ir.DataType.FLOAT, shape=small.shape,
    )  # fmt: skip
