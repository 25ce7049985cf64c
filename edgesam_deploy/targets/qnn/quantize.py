"""8-bit weights and 8- or 16-bit activations, as QNN takes them: Quantize and Dequantize around each operator."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgesam_deploy.precision.bias_correction import bias_corrected
from edgesam_deploy.targets.base import Arrays
from edgesam_deploy.toolkits import require

PROMPT_INPUTS = frozenset({"point_coords", "point_labels"})
PER_CHANNEL = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}  # axis of the weight's output channels
FIXED_RANGE = frozenset({"Sigmoid", "Tanh"})  # the compiler wants exactly one scale for their 16-bit results
HEADROOM = 2.0  # 16 bit have a bit to spare: a prompt of a kind that calibration lacks leaves its ranges: 23 dB


def quantise(model: Path, rows: Sequence[Arrays], activation_bits: int, kept: Sequence[str] = ()) -> list[str]:
    """Replace the float model in a file by its quantised form, ranges from ``rows`` (inputs by name); min and max.

    Weights of convolutions and matrix products per channel, int8; other weights per tensor, uint8: the compiler takes
    no other for its norms, and a Gemm by channel gains nothing. Biases take up what rounding the weights shifts the
    mean by (``bias_corrected``); 16-bit ranges are twice those seen. Returns the nodes that stay float (``float_nodes``
    and for 16 bit ``dynamic_products``) or were named in ``kept``, which run in fp16.
    """
    require("onnxruntime_qnn", "quantising for QNN")
    from onnxruntime.quantization import QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model

    proto = onnx.load(model)
    metadata = list(proto.metadata_props)
    del proto.metadata_props[:]  # qnn_preprocess_model cannot read them
    floating = list(dict.fromkeys([*float_nodes(proto.graph), *kept]))
    if activation_bits == 16:
        floating += [name for name in dynamic_products(proto.graph) if name not in floating]
    bias_corrected(proto, rows, floating, PER_CHANNEL)
    source, prepared = model.with_suffix(".float"), model.with_suffix(".prepared")
    try:
        onnx.save(proto, source)
        with _quiet():
            if not qnn_preprocess_model(source, prepared, fuse_layernorm=False):  # makes one GELU of its pieces
                prepared = source
            config = get_qnn_qdq_config(
                prepared, _Reader(rows), weight_type=QuantType.QUInt8, nodes_to_exclude=floating,
                activation_type=QuantType.QUInt16 if activation_bits == 16 else QuantType.QUInt8,
                init_overrides=_per_channel(proto.graph, QuantType.QInt8),
            )  # fmt: skip
            quantize(prepared, model, config)
    finally:
        for path in (source, prepared):
            path.unlink(missing_ok=True)
    made = onnx.load(model)
    if activation_bits == 16:
        _widen(made.graph, HEADROOM)
    made.metadata_props.extend(metadata)
    made.producer_name, made.producer_version = proto.producer_name, proto.producer_version
    onnx.save(made, model)
    return floating


def float_nodes(graph: onnx.GraphProto) -> list[str]:
    """The nodes that quantisation leaves alone.

    * What depends on the prompt alone: coordinates reach 1,024 and labels are codes, and their encoding goes through
      sine and cosine of many turns; there are few numbers of them.
    * Attention masks: they add -1e4 to the scores of empty slots, beside which 8 bit have no room for the scores.
    """
    weights = {weight.name for weight in graph.initializer}
    values = {value.name for value in graph.input} & PROMPT_INPUTS
    readers: dict[str, list[onnx.NodeProto]] = {}
    found: list[str] = []
    for node in graph.node:
        inputs = {name for name in node.input if name}
        for name in inputs:
            readers.setdefault(name, []).append(node)
        if inputs & values and inputs <= values | weights:
            values |= set(node.output)
            found.append(node.name)
    own = set(found)
    for node in graph.node:
        softmaxes = [n.name for n in readers.get(node.output[0], ()) if n.op_type == "Softmax"]
        if node.op_type == "Add" and node.name not in own and softmaxes and values & set(node.input):
            found += [node.name, *softmaxes]
    return found


def dynamic_products(graph: onnx.GraphProto) -> list[str]:
    """Matrix products of two activations, and each softmax between two of them.

    On the emulator a 16-bit product loses as many bits as if one factor had 8: attention scores have 32 dB where the
    same graph has 45 on a CPU, and the masks of edge_sam 23 dB instead of 35. In fp16 they keep their bits.
    """
    weights = {weight.name for weight in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and not weights & set(node.input)]
    made = {name for node in products for name in node.output}
    read = {name for node in products for name in node.input}
    chosen = {node.name for node in products}
    chosen |= {
        node.name
        for node in graph.node
        if node.op_type == "Softmax" and node.input[0] in made and node.output[0] in read
    }
    return [node.name for node in graph.node if node.name in chosen]


def _widen(graph: onnx.GraphProto, factor: float) -> None:
    """Ranges of 16-bit activations ``factor`` times as wide about zero, in a quantised graph.

    A 32-bit bias has the scale of its input times that of its weight, and follows its input.
    """
    weights = {weight.name: weight for weight in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    ends = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    fixed = {end.input[1] for end in ends if end.input[0] in made and made[end.input[0]].op_type in FIXED_RANGE}
    wide = {end.input[1] for end in ends if weights[end.input[2]].data_type == onnx.TensorProto.UINT16} - fixed
    scales = set(wide)
    for node in graph.node:
        data, bias = (made.get(node.input[i]) if len(node.input) == 3 else None for i in (0, 2))
        if data is None or bias is None or {data.op_type, bias.op_type} != {"DequantizeLinear"}:
            continue
        held = weights.get(bias.input[0])
        if data.input[1] in wide and held is not None and held.data_type == onnx.TensorProto.INT32:
            values = np.round(numpy_helper.to_array(held) / factor).astype(np.int32)
            held.CopyFrom(numpy_helper.from_array(values, held.name))
            scales.add(bias.input[1])
    for name in scales:
        scale = numpy_helper.to_array(weights[name])
        weights[name].CopyFrom(numpy_helper.from_array(scale * scale.dtype.type(factor), name))


def _per_channel(graph: onnx.GraphProto, kind: Any) -> dict[str, list[dict[str, Any]]]:
    weights = {weight.name for weight in graph.initializer if len(weight.dims) > 1}
    return {
        node.input[1]: [{"quant_type": kind, "axis": PER_CHANNEL[node.op_type], "symmetric": True}]
        for node in graph.node
        if node.op_type in PER_CHANNEL and node.input[1] in weights
    }


class _Reader:
    """Rows as ONNX Runtime's calibration reads them: one at a time, then None."""

    def __init__(self, rows: Sequence[Arrays]) -> None:
        self._rows = list(rows)
        self._next = iter(self._rows)

    def get_next(self) -> dict[str, Any] | None:
        row = next(self._next, None)
        return None if row is None else dict(row)

    def rewind(self) -> None:
        self._next = iter(self._rows)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next = iter(self._rows[start_index:end_index])

    def __len__(self) -> int:
        return len(self._rows)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs a warning per tensor to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
