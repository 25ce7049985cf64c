"""The single nodes that probe_qnn asks Qualcomm's compiler about: how each operator's node is made, types and ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 21
Shape = tuple[int, ...]
SHAPES: Mapping[int, Shape] = {
    1: (16,), 2: (16, 16), 3: (4, 16, 16), 4: (1, 8, 16, 16), 5: (1, 2, 8, 16, 16), 6: (1, 2, 2, 4, 8, 8),
}  # fmt: skip
ELEMENTS = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64,
    "int32": TensorProto.INT32, "int16": TensorProto.INT16, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16, "bool": TensorProto.BOOL,
}  # fmt: skip
FLOATS, NUMBERS = ("float32", "float16"), ("float32", "float16", "int32", "int64")
ANY = (*NUMBERS, "uint8", "bool")


@dataclass(frozen=True)
class Operand:
    """One input of the node: a graph input, or a weight where it has a value."""

    dtype: str
    shape: Shape
    value: NDArray[Any] | None = None


@dataclass(frozen=True)
class Node:
    """One node to ask about."""

    op: str
    operands: tuple[Operand, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


Maker = Callable[[str, Shape], Node]


@dataclass(frozen=True)
class Probe:
    """An operator, how its node is made for a type and a shape of its first input, and which of both are asked for.

    grows: how many axes its result has more than that input. typed: the operand that has the type.
    """

    op: str
    make: Maker
    dtypes: tuple[str, ...] = FLOATS
    ranks: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    grows: int = 0
    typed: int = 0


# ---------------------------------------------------------------------------------------------------- the operators


def data(dtype: str, shape: Shape) -> Operand:
    """A runtime operand."""
    return Operand(dtype, shape)


def numbers(*values: float, dtype: str = "int64") -> Operand:
    """A constant list."""
    return Operand(dtype, (len(values),), np.array(values, dtype))


def scalar(value: float, dtype: str = "int64") -> Operand:
    """A constant without axes."""
    return Operand(dtype, (), np.array(value, dtype))


def weight(dtype: str, *shape: int) -> Operand:
    """A constant tensor of small numbers, different from each other."""
    return Operand(dtype, shape, np.linspace(0.1, 0.9, int(np.prod(shape))).reshape(shape).astype(dtype))


def unary(op: str, **attributes: Any) -> Maker:
    """op(x)"""
    return lambda dtype, shape: Node(op, (data(dtype, shape),), attributes)


def binary(op: str) -> Maker:
    """op(x, x)"""
    return lambda dtype, shape: Node(op, (data(dtype, shape), data(dtype, shape)))


def with_constants(op: str, *constants: Callable[[Shape], Operand], **attributes: Any) -> Maker:
    """op(x, constants), where each constant depends on the shape."""
    return lambda dtype, shape: Node(op, (data(dtype, shape), *(make(shape) for make in constants)), attributes)


def _matmul(dtype: str, shape: Shape) -> Node:
    return Node("MatMul", (data(dtype, shape), data(dtype, (*shape[:-2], shape[-1], 16))))


def _conv(op: str) -> Maker:
    return lambda dtype, shape: Node(
        op, (data(dtype, shape), weight(dtype, 8, 8, *[1] * (len(shape) - 2)), weight(dtype, 8))
    )


def _norm(op: str, parameters: int, width: Callable[[Shape], int]) -> Maker:
    return lambda dtype, shape: Node(op, (data(dtype, shape), *[weight(dtype, width(shape))] * parameters))


def _where(dtype: str, shape: Shape) -> Node:
    return Node("Where", (data("bool", shape), data(dtype, shape), data(dtype, shape)))


def _concat(dtype: str, shape: Shape) -> Node:
    return Node("Concat", (data(dtype, shape), data(dtype, shape)), {"axis": -1})


def _transpose(dtype: str, shape: Shape) -> Node:
    return Node("Transpose", (data(dtype, shape),), {"perm": [*range(1, len(shape)), 0]})


def resize(dtype: str, shape: Shape, mode: str) -> Node:
    """Twice as high and wide."""
    none = Operand("float32", (0,), np.zeros(0, np.float32))
    return Node("Resize", (data(dtype, shape), none, numbers(1, 1, 2, 2, dtype="float32")), {"mode": mode})


def _scatter(dtype: str, shape: Shape) -> Node:
    place = Operand("int64", (1, 1), np.zeros((1, 1), np.int64))
    return Node("ScatterND", (data(dtype, shape), place, data(dtype, (1, *shape[1:]))))


def _einsum(dtype: str, shape: Shape) -> Node:
    return Node("Einsum", (data(dtype, shape), data(dtype, shape)), {"equation": "bhij,bhkj->bhik"})


def _last(shape: Shape) -> Operand:
    return numbers(len(shape) - 1)


def _index(*indices: int) -> Callable[[Shape], Operand]:
    return lambda _: numbers(*indices)


# fmt: off
PROBES: tuple[Probe, ...] = (
    *(Probe(op, unary(op), NUMBERS) for op in ("Abs", "Neg", "Sign", "Relu")),
    *(
        Probe(op, unary(op))
        for op in (
            "Sin", "Cos", "Tanh", "Sigmoid", "Exp", "Log", "Sqrt", "Floor", "Ceil", "Round", "Reciprocal", "Softplus",
            "HardSigmoid", "HardSwish", "LeakyRelu", "Elu", "Erf", "Gelu", "Softmax", "LogSoftmax", "IsNaN", "Atan",
        )
    ),
    *(Probe(op, binary(op), NUMBERS) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Mod")),
    *(Probe(op, binary(op), NUMBERS) for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *(Probe(op, binary(op), ("bool",)) for op in ("And", "Or", "Xor")),
    Probe("Equal", binary("Equal"), ANY),
    Probe("Not", unary("Not"), ("bool",)),
    Probe("PRelu", with_constants("PRelu", lambda s: weight("float32", s[-1])), ("float32",)),
    Probe("Clip", with_constants("Clip", lambda _: scalar(0, "float32"), lambda _: scalar(6, "float32")),
          ("float32",)),
    Probe("MatMul", _matmul, NUMBERS, (2, 3, 4, 5, 6)),
    Probe("Gemm", lambda t, s: Node("Gemm", (data(t, s), weight(t, 16, 8), weight(t, 8))), FLOATS, (2,)),
    Probe("Conv", _conv("Conv"), FLOATS, (3, 4, 5)),
    Probe("ConvTranspose", _conv("ConvTranspose"), FLOATS, (3, 4, 5)),
    Probe("LayerNormalization", _norm("LayerNormalization", 2, lambda s: s[-1])),
    Probe("BatchNormalization", _norm("BatchNormalization", 4, lambda s: s[1]), FLOATS, (2, 3, 4, 5)),
    Probe("InstanceNormalization", _norm("InstanceNormalization", 2, lambda s: s[1]), FLOATS, (3, 4, 5)),
    *(
        Probe(op, with_constants(op, _last, keepdims=1), NUMBERS)
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd")
    ),
    *(Probe(op, unary(op), FLOATS, (3, 4, 5)) for op in ("GlobalAveragePool", "GlobalMaxPool")),
    *(Probe(op, unary(op, kernel_shape=[2, 2]), FLOATS, (4,)) for op in ("AveragePool", "MaxPool")),
    Probe("Reshape", with_constants("Reshape", lambda s: numbers(2, -1)), ANY),
    Probe("Flatten", unary("Flatten"), ANY, (2, 3, 4, 5, 6)),
    Probe("Transpose", _transpose, ANY, (2, 3, 4, 5, 6)),
    Probe("Squeeze", lambda t, s: Node("Squeeze", (data(t, (1, *s[1:])), numbers(0))), ANY, (2, 3, 4, 5, 6)),
    Probe("Unsqueeze", with_constants("Unsqueeze", _index(0)), ANY, (1, 2, 3, 4, 5), grows=1),
    Probe("Expand", with_constants("Expand", lambda s: numbers(2, *[1] * len(s))), ANY, (1, 2, 3, 4, 5),
          grows=1),
    Probe("Tile", with_constants("Tile", lambda s: numbers(*[1] * (len(s) - 1), 2)), ANY),
    Probe("Concat", _concat, ANY),
    Probe("Split", with_constants("Split", lambda s: numbers(*[s[-1] // 2] * 2), axis=-1), ANY),
    Probe("Slice", with_constants("Slice", _index(0), _index(4), _last, _index(1)), ANY),
    Probe("Pad", with_constants("Pad", lambda s: numbers(*[1] * (2 * len(s)))), FLOATS),
    Probe("Gather", with_constants("Gather", _index(0, 2), axis=-1), NUMBERS),
    Probe("GatherND", with_constants("GatherND", lambda _: Operand("int64", (2, 1), np.zeros((2, 1), np.int64))),
          NUMBERS),
    Probe("GatherElements", with_constants("GatherElements", lambda s: Operand("int64", s, np.zeros(s, "int64"))),
          NUMBERS),
    Probe("ScatterND", _scatter, NUMBERS),
    Probe("Where", _where, ANY, typed=1),
    Probe("CumSum", with_constants("CumSum", lambda _: scalar(0)), NUMBERS),
    Probe("TopK", with_constants("TopK", _index(2)), FLOATS),
    *(Probe(op, unary(op, axis=-1), FLOATS) for op in ("ArgMax", "ArgMin")),
    Probe("OneHot", with_constants("OneHot", lambda _: scalar(4), lambda _: numbers(0, 1)),
          ("int32", "int64"), (1, 2, 3)),
    *(Probe(op, unary(op, blocksize=2), FLOATS, (4,)) for op in ("DepthToSpace", "SpaceToDepth")),
    Probe("Einsum", _einsum, FLOATS, (4,)),
    Probe("GridSample", lambda t, s: Node("GridSample", (data(t, s), data(t, (1, 4, 4, 2)))), FLOATS, (4,)),
    Probe("NonZero", unary("NonZero"), ("float32", "bool"), (1, 2, 3, 4)),
    *(Probe(op, unary(op), ANY) for op in ("Shape", "Size")),
    Probe("Trilu", unary("Trilu"), FLOATS, (2, 3, 4)),
    Probe("CastLike", with_constants("CastLike", lambda _: numbers(0, dtype="int32")), ("float32", "int64"), (4,)),
    Probe("ConstantOfShape", lambda _, s: Node("ConstantOfShape", (numbers(*s),)), ("int64",), (4,)),
    Probe("Range", lambda *_: Node("Range", (scalar(0), scalar(4), scalar(1))), ("int64",), (1,)),
    Probe("DFT", lambda t, s: Node("DFT", (data(t, (*s[:-1], 1)), scalar(16), scalar(1))), ("float32",), (3, 4)),
)
# fmt: on
# operands that are weights above and may be runtime values in a file
RUNTIME: Mapping[str, int] = {
    "Reshape": 1,
    "Squeeze": 1,
    "Unsqueeze": 1,
    "Expand": 1,
    "Tile": 1,
    "Slice": 1,
    "Pad": 1,
    "Split": 1,
    "Gather": 1,
    "GatherND": 1,
    "ScatterND": 1,
    "ReduceMean": 1,
    "ReduceSum": 1,
    "ReduceMax": 1,
    "ReduceMin": 1,
    "TopK": 1,
    "Conv": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "CumSum": 1,
    "OneHot": 1,
    "LayerNormalization": 1,
    "Clip": 1,
    "ConstantOfShape": 0,
    "Range": 1,
}  # fmt: skip


def model_of(node: Node, *, runtime: tuple[int, ...] = (), dynamic: bool = False) -> ModelProto:
    """The model of that node alone. runtime: operands that become inputs although they have a value. dynamic: the first
    input's first dimension has a name instead of a size.
    """
    names, inputs, weights = [], [], []
    for position, operand in enumerate(node.operands):
        name = f"x{position}"
        names.append(name)
        if operand.value is not None and position not in runtime:
            weights.append(numpy_helper.from_array(np.asarray(operand.value, operand.dtype), name))
        else:
            shape: list[int | str | None] = [*operand.shape]
            if dynamic:
                shape[0] = "n"
            inputs.append(helper.make_tensor_value_info(name, ELEMENTS[operand.dtype], shape))
    body = helper.make_node(node.op, names, outputs(node.op), name=node.op, **node.attributes)
    values = [ValueInfoProto(name=name) for name in body.output]  # of whatever type the operator gives
    graph = helper.make_graph([body], "probe", inputs, values, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def outputs(op: str) -> list[str]:
    """Names of a node's results."""
    return ["y", "z"] if op in ("TopK", "Split") else ["y"]
