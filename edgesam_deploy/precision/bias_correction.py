"""Bias correction: what rounding a weight to 8 bit shifts the mean of its layer's output by goes into the bias."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgesam_deploy.precision.probes import probe_session

Arrays = Mapping[str, NDArray[Any]]
BIAS_INPUT = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
MAPS = frozenset({"Conv", "ConvTranspose"})  # (B, C, H, W); the others have the channels last


@dataclass(frozen=True)
class Layer:
    """A node with a weight of two or more dimensions, and the name of its bias, which nothing else reads."""

    node: onnx.NodeProto
    bias: str

    @property
    def weight(self) -> str:
        return str(self.node.input[1])


def bias_corrected(
    model: onnx.ModelProto, rows: Sequence[Arrays], floating: Collection[str], per_channel: Mapping[str, int]
) -> int:
    """Add E[f(x, W)] - E[f(x, W rounded)] to the bias of each layer f, in place; returns how many.

    The mean is that of the float model over ``rows`` and all positions (Nagel et al., Data-Free Quantization, 2019,
    section 4.2, with measured inputs). Tokens of a decoder hardly vary from prompt to prompt, so that most of what
    rounding costs is such a shift: 28 dB become 35 for the masks of edge_sam. ``floating``: nodes that keep their
    weights. ``per_channel``: the axis of the output's channels in weights that have a scale for each.
    """
    layers = [layer for layer in _layers(model.graph) if layer.node.name not in floating]
    if not layers:
        return 0
    weights = {weight.name: weight for weight in model.graph.initializer}
    lost = {}
    for layer in layers:
        weight = numpy_helper.to_array(weights[layer.weight])
        lost[layer.weight] = weight - rounded(weight, per_channel.get(layer.node.op_type))
    for layer, shift in zip(layers, _mean_outputs(model, layers, lost, rows), strict=True):
        bias = numpy_helper.to_array(weights[layer.bias])
        weights[layer.bias].CopyFrom(numpy_helper.from_array((bias + shift).astype(bias.dtype), layer.bias))
    return len(layers)


def rounded(weight: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    """The values that 8 bit leave: int8 with a scale for each index of ``axis``, or uint8 with one scale and offset."""
    if axis is None:
        low, high = min(float(weight.min()), 0.0), max(float(weight.max()), 0.0)
        step = np.float32((high - low) / 255 or 1)
        zero = np.round(-low / step)
        return np.asarray((np.clip(np.round(weight / step) + zero, 0, 255) - zero) * step, np.float32)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    steps = np.abs(weight).max(others, keepdims=True) / np.float32(127)
    steps[steps == 0] = 1
    return np.asarray(np.clip(np.round(weight / steps), -127, 127) * steps, np.float32)


def _layers(graph: onnx.GraphProto) -> Iterator[Layer]:
    weights = {weight.name: len(weight.dims) for weight in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in graph.node:
        if len(node.input) < 2 or weights.get(node.input[1], 0) < 2 or node.input[0] in weights:
            continue
        bias = _bias(node, readers.get(node.output[0], []), weights)
        if bias is not None and len(readers[bias]) == 1:
            yield Layer(node, bias)


def _bias(node: onnx.NodeProto, after: Sequence[onnx.NodeProto], weights: Mapping[str, int]) -> str | None:
    """The vector that is added: an input of the node, or of the Add that alone reads a matrix product."""
    if node.op_type in BIAS_INPUT:
        found = list(node.input[BIAS_INPUT[node.op_type] :])
    elif node.op_type == "MatMul" and len(after) == 1 and after[0].op_type == "Add":
        found = list(after[0].input)
    else:
        return None
    return next((name for name in found if weights.get(name) == 1), None)


def _mean_outputs(
    model: onnx.ModelProto, layers: Sequence[Layer], weights: Mapping[str, NDArray[np.float32]], rows: Sequence[Arrays]
) -> list[NDArray[np.float64]]:
    """(channels,) per layer: the mean of what it would give with these weights and no bias, on its own inputs."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for index, layer in enumerate(layers):
        _attach(probe.graph, layer, f"probe.{index}", weights[layer.weight])
        probe.graph.output.append(helper.make_empty_tensor_value_info(f"probe.{index}.mean"))
    session = probe_session(probe, "correcting biases")
    sums = [np.zeros((), np.float64) for _ in layers]
    for row in rows:
        sums = [total + mean for total, mean in zip(sums, session.run(None, dict(row)), strict=True)]
    return [total / len(rows) for total in sums]


def _attach(graph: onnx.GraphProto, layer: Layer, name: str, weight: NDArray[np.float32]) -> None:
    """The layer again with another weight and no bias, and its mean by channel: whole maps would take gigabytes."""
    twin = onnx.NodeProto()
    twin.CopyFrom(layer.node)
    twin.name = name
    del twin.input[:], twin.output[:]
    twin.input.extend([layer.node.input[0], f"{name}.weight"])
    twin.output.append(f"{name}.y")
    graph.initializer.append(numpy_helper.from_array(weight, f"{name}.weight"))
    positions, rows = [0, 2, 3], f"{name}.y"
    graph.node.append(twin)
    if layer.node.op_type not in MAPS:
        positions, rows = [0], f"{name}.rows"
        channels = weight.shape[0] if _transposed(layer.node) else weight.shape[-1]
        graph.initializer.append(numpy_helper.from_array(np.array([-1, channels]), f"{name}.shape"))
        graph.node.append(helper.make_node("Reshape", [f"{name}.y", f"{name}.shape"], [rows], name=f"{name}.reshape"))
    graph.initializer.append(numpy_helper.from_array(np.array(positions), f"{name}.axes"))
    graph.node.append(
        helper.make_node("ReduceMean", [rows, f"{name}.axes"], [f"{name}.mean"], name=f"{name}.reduce", keepdims=0)
    )


def _transposed(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
