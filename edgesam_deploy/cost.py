"""What a model costs: multiply-accumulates of an .onnx file or of a module, and parameters.

    onnx_macs(path, sizes={"num_points": 5})      {"Conv": 20053704704, "MatMul": 1048576, ...}
    model_macs(module, torch.empty(1, 3, 1024, 1024, device="meta"))
    parameters(module).children

A multiply-accumulate is one product that goes into a sum: bias, norms, activations and interpolation count nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto

from edgesam_deploy.errors import UnknownName, UsageError
from edgesam_deploy.onnx_file import read_graph

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGE = 200e9  # multiply-accumulates of a part's call, above which it takes tens of seconds and gigabytes
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


# ---------------------------------------------------------------------------------------------------- .onnx files


def _of_conv(_: NodeProto, x: Shape, weight: Shape, out: Shape) -> int:
    return prod(out) * prod(weight[1:])  # (out, in / groups, kernel)


def _of_conv_transpose(_: NodeProto, x: Shape, weight: Shape, out: Shape) -> int:
    return prod(x) * prod(weight[1:])  # (in, out / groups, kernel)


def _of_matmul(_: NodeProto, a: Shape, b: Shape, out: Shape) -> int:
    return prod(out) * a[-1]


def _of_gemm(node: NodeProto, a: Shape, b: Shape, out: Shape) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return prod(out) * a[0 if transposed else 1]


COUNTED: dict[str, Callable[[NodeProto, Shape, Shape, Shape], int]] = {
    "Conv": _of_conv,
    "ConvTranspose": _of_conv_transpose,
    "MatMul": _of_matmul,
    "MatMulInteger": _of_matmul,
    "Gemm": _of_gemm,
}
# they multiply too: a sum without them would be a claim
UNCOUNTED = frozenset(
    {"Attention", "ConvInteger", "DeformConv", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul", "GRU", "LSTM",
     "MatMulNBits", "MultiHeadAttention", "QLinearConv", "QLinearMatMul", "RNN"}
)  # fmt: skip


def onnx_macs(
    path: Path, *, sizes: Mapping[str, int] | None = None, inputs: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, int]:
    """Multiply-accumulates of an .onnx file by operator (``COUNTED``), its external weights unread.

    sizes: dynamic dimensions of the inputs by name; those left out, and those without a name, are 1. inputs: arrays by
    input name, with which the graph is run (ONNX Runtime, all of its files read): for graphs whose shapes depend on
    values, where inference knows nothing.

    Raises UsageError for a file that is not ONNX, an operator that cannot be counted, or a node whose shapes are not
    known; UnknownName for a dimension that no input has.
    """
    path = Path(path)
    model = read_graph(path)
    nodes = list(_counted(model.graph, path))
    shapes = _inferred(model, sizes or {}, path) if inputs is None else _met(path, nodes, inputs)
    totals: Counter[str] = Counter()
    for node in nodes:
        first, second, out = (shapes.get(name) for name in (*node.input[:2], node.output[0]))
        if first is None or second is None or out is None:
            raise UsageError(
                f"{path.name}: the shapes of {node.op_type} {node.name or node.output[0]!r} cannot be inferred; "
                "export with static shapes, or pass inputs to run it with"
            )
        totals[node.op_type] += COUNTED[node.op_type](node, first, second, out)
    return dict(totals)


def _counted(graph: GraphProto, path: Path, inside: str = "") -> Iterator[NodeProto]:
    """The nodes of ``COUNTED``. Raises UsageError for what multiplies and is not in it, or in a branch or a loop."""
    for node in graph.node:
        if node.op_type in UNCOUNTED or (inside and node.op_type in COUNTED):
            where = f"inside of {inside}, which may run or not" if inside else "not among the operators counted"
            raise UsageError(f"{path.name}: {node.op_type} {node.name or node.output[0]!r} is {where}")
        if node.op_type in COUNTED and node.domain in ("", "ai.onnx"):
            yield node
        for attribute in node.attribute:
            for body in (attribute.g,) if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                yield from _counted(body, path, node.op_type)


def _inferred(model: ModelProto, sizes: Mapping[str, int], path: Path) -> Shapes:
    """The static shapes that inference finds once the inputs' dynamic dimensions are bound."""
    weights = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    symbols = {d.dim_param for value in inputs for d in value.type.tensor_type.shape.dim if d.dim_param}
    for name in sizes:
        if name not in symbols:
            raise UnknownName("dynamic dimension", name, symbols or ["none: every shape is static"])
    for value in inputs:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = sizes.get(dim.dim_param, 1)
    # what the file says in terms of its symbols is found anew; the outputs' names keep the checker content
    known = [value for value in model.graph.value_info if _static(value.type) is not None]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)
    for value in model.graph.output:
        if _static(value.type) is None:
            value.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as e:
        raise UsageError(f"{path.name}: shape inference fails: {e}") from e
    found = ((value.name, _static(value.type)) for value in (*graph.input, *graph.value_info, *graph.output))
    return {**{name: shape for name, shape in found if shape is not None}, **weights}


def _static(kind: TypeProto) -> Shape | None:
    tensor = kind.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)


def _met(path: Path, nodes: list[NodeProto], inputs: Mapping[str, NDArray[Any]]) -> Shapes:
    """The shapes that the nodes' inputs and outputs have in one run of the unoptimised graph."""
    import onnxruntime

    model = onnx.load(path)
    constants = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    given = {name: tuple(value.shape) for name, value in inputs.items()}
    names = {name for node in nodes for name in (*node.input[:2], node.output[0])} - constants.keys() - given.keys()
    del model.graph.output[:]
    model.graph.output.extend(ValueInfoProto(name=name) for name in sorted(names))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(sorted(names), dict(inputs))
    return {**constants, **given, **{name: value.shape for name, value in zip(sorted(names), found, strict=True)}}


# ---------------------------------------------------------------------------------------------------- modules


def model_macs(module: nn.Module, *inputs: Tensor, **named: Tensor) -> int:
    """Multiply-accumulates of ``module(*inputs, **named)``, half of what torch's counter calls FLOPs. Imports PyTorch.

    Nothing is computed: weights and inputs stand in as shapes on the meta device, so that size is no matter.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    state = {name: tensor.to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        given = {name: tensor.to("meta") for name, tensor in named.items()}
        torch.func.functional_call(module, state, tuple(tensor.to("meta") for tensor in inputs), given)
    flops: int = counter.get_total_flops()
    return flops // 2


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by child; those that the module holds itself go by their own names."""

    children: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.children.values())


def parameters(module: nn.Module) -> Parameters:
    """How many parameters ``module`` and each of its children have, shared ones once. Buffers are none."""
    children: Counter[str] = Counter()
    for name, tensor in module.named_parameters():
        children[name.partition(".")[0]] += tensor.numel()
    return Parameters(dict(children))
