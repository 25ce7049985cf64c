from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import (
    add_initializer,
    constant,
    has_graphs,
    integers,
    is_standard,
    opset,
    replace_value,
    static_shape,
)  # fmt: skip
from edgesam_deploy.passes.program import Program

log = logging.getLogger(__name__)
Partial = NDArray[np.object_]  # integers, of which those that are not known are None
ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Sqrt", "Exp", "Log", "Erf", "Tanh", "Sin", "Cos", "Relu",
    "Sigmoid", "Softmax", "Identity", "Gelu",
}  # fmt: skip
SMALL = 64  # elements: shapes, axes, indices; a larger array is data


@exact
def fold_shapes(program: Program) -> int:
    """Work out every shape in one sweep, and store what is computed from static dimensions.

        x (1, 6, 256) ── Shape ── Gather(1) ── Concat ── Reshape        Reshape([1, 6, 8, 32])

    Why: one Reshape's target is computed from the result of the Reshape before it, so inferring all shapes and then
    folding all constants finds one link of the chain per round: 30 rounds for a decoder. In the order of the graph one
    sweep is enough, and dimensions that are static count even where others are not. Exact. Site = a value that became
    a constant, or a shape that became static.
    """
    model = program.onnx
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    sweep = _Sweep(program)
    sites = sum(sweep.visit(node) for node in list(model.graph))
    common.RemoveUnusedNodesPass()(model)
    return sites


class _Sweep:
    """What is known while going through the graph once: the integers behind small values, partly perhaps."""

    def __init__(self, program: Program) -> None:
        self.graph = program.onnx.graph
        self.opset = opset(program)
        self.known: dict[ir.Value, Partial] = {}

    def visit(self, node: ir.Node) -> int:
        if not is_standard(node) or has_graphs(node):
            return 0
        sites = self._infer(node)
        values = _PARTIAL[node.op_type](self, node) if node.op_type in _PARTIAL else None
        if values is None or values.size > SMALL:
            return sites
        (result,) = node.outputs
        self.known[result] = values
        if any(v is None for v in values.flat) or result.dtype is None or result.is_graph_output():
            return sites
        array = values.astype(result.dtype.numpy())
        replace_value(result, add_initializer(self.graph, f"{result.name}_folded", array))
        return sites + 1

    def _infer(self, node: ir.Node) -> int:
        """Let onnx's own rule for this operator say what the results' shapes are; how many became static."""
        unknown = [v for v in node.outputs if static_shape(v) is None]
        if not unknown or any(v is not None and v.type is None for v in node.inputs):
            return 0
        if (shape := _elementwise(node)) is not None:
            (result,) = node.outputs
            assert node.inputs[0] is not None
            result.shape, result.type = ir.Shape(shape), node.inputs[0].type
            return 1
        found = self._inferred(node)
        return sum(_refine(value, found.get(value.name or "")) for value in unknown)

    def _inferred(self, node: ir.Node) -> dict[str, onnx.TypeProto]:
        inputs = [v for v in node.inputs if v is not None]
        types = {str(v.name): _type_proto(v) for v in inputs}
        data = {str(v.name): onnx.numpy_helper.from_array(a) for v in inputs if (a := self._small(v)) is not None}
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, "")
            versions = [onnx.helper.make_opsetid("", self.opset)]
            found = onnx.shape_inference.infer_node_outputs(
                schema, ir.serde.serialize_node(node), types, data, opset_imports=versions
            )
        except (onnx.shape_inference.InferenceError, onnx.defs.SchemaError, RuntimeError) as e:
            log.debug("fold_shapes: %s: %s", node.name, e)
            return {}
        return dict(found)

    def _small(self, value: ir.Value) -> NDArray[Any] | None:
        tensor = value.const_value
        return constant(value) if tensor is not None and tensor.size <= SMALL else None

    def partial(self, value: ir.Value | None) -> Partial | None:
        """The integers behind a value, None for each that depends on the input."""
        if value is None:
            return None
        if value in self.known:
            return self.known[value]
        array = self._small(value)
        return array.astype(object) if array is not None and array.dtype.kind in "iu" else None


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    """Put together by hand: onnx_ir's general way takes ten times as long, for every operand of every node."""
    if not isinstance(value.type, ir.TensorType):
        return ir.serde.serialize_value(value).type
    dims = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    return onnx.helper.make_tensor_type_proto(int(value.type.dtype), dims)


def _elementwise(node: ir.Node) -> tuple[int, ...] | None:
    """The result's shape for the operators that most of any graph consists of, without asking onnx."""
    if node.op_type not in ELEMENTWISE:
        return None
    shapes = [static_shape(v) for v in node.inputs]
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes):
        return None
    try:
        return np.broadcast_shapes(*known)
    except ValueError:
        return None  # the file is wrong; running it will tell


def _refine(value: ir.Value, found: onnx.TypeProto | None) -> bool:
    """Take over the dimensions that were found; whether all are known now."""
    if found is None:
        return False
    if value.dtype is None and found.tensor_type.elem_type:
        value.type = ir.TensorType(ir.DataType(found.tensor_type.elem_type))
    if not found.tensor_type.HasField("shape"):
        return False
    dims = found.tensor_type.shape.dim
    before: Sequence[Any] = list(value.shape) if value.shape is not None else [None] * len(dims)
    if len(before) != len(dims):
        return False  # what the file claims is wrong; the proof decides
    value.shape = ir.Shape(
        [d.dim_value if d.HasField("dim_value") else d.dim_param or b for d, b in zip(dims, before, strict=True)]
    )
    return static_shape(value) is not None


# --- what small integers become ---


def _shape(sweep: _Sweep, node: ir.Node) -> Partial | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    start, end = (node.attributes.get(k) for k in ("start", "end"))
    dims = list(source.shape)[start.as_int() if start else None : end.as_int() if end else None]
    return _array([d if isinstance(d, int) else None for d in dims])


def _size(sweep: _Sweep, node: ir.Node) -> Partial | None:
    shape = static_shape(node.inputs[0])
    return None if shape is None else np.array(int(np.prod(shape)), object)


def _gather(sweep: _Sweep, node: ir.Node) -> Partial | None:
    data, at = sweep.partial(node.inputs[0]), integers(node.inputs[1])
    axis = node.attributes.get("axis")
    if data is None or data.ndim != 1 or at is None or (axis is not None and axis.as_int() not in (0, -1)):
        return None
    if at.size and not -len(data) <= at.min() <= at.max() < len(data):
        return None
    return np.asarray(data[at], object)


def _slice(sweep: _Sweep, node: ir.Node) -> Partial | None:
    data = sweep.partial(node.inputs[0])
    if data is None or data.ndim != 1 or len(node.inputs) < 3:
        return None
    step = np.array([1]) if len(node.inputs) < 5 or node.inputs[4] is None else integers(node.inputs[4])
    bounds = [integers(v) for v in node.inputs[1:3]]
    if step is None or any(b is None or b.size != 1 for b in bounds):
        return None
    start, end = (int(b.item()) for b in bounds if b is not None)
    return data[start:end] if step.item() == 1 else None


def _concat(sweep: _Sweep, node: ir.Node) -> Partial | None:
    parts = [sweep.partial(v) for v in node.inputs]
    if any(p is None or p.ndim != 1 for p in parts):
        return None
    return np.concatenate([p for p in parts if p is not None])


def _reshaped(sweep: _Sweep, node: ir.Node) -> Partial | None:
    data, shape = sweep.partial(node.inputs[0]), static_shape(node.outputs[0])
    return None if data is None or shape is None else data.reshape(shape)


def _same(sweep: _Sweep, node: ir.Node) -> Partial | None:
    result = node.outputs[0].dtype
    return sweep.partial(node.inputs[0]) if result is not None and result in _INTEGERS else None


def _arithmetic(function: Callable[[Any, Any], Any]) -> Callable[[_Sweep, ir.Node], Partial | None]:
    def compute(sweep: _Sweep, node: ir.Node) -> Partial | None:
        a, b = (sweep.partial(v) for v in node.inputs)
        if a is None or b is None:
            return None
        return np.asarray(np.frompyfunc(lambda p, q: None if p is None or q is None else function(p, q), 2, 1)(a, b))

    return compute


def _quotient(a: int, b: int) -> int | None:
    return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)  # towards zero, as C does


def _array(items: Sequence[int | None]) -> Partial:
    array = np.empty(len(items), object)
    array[:] = items
    return array


_INTEGERS = {ir.DataType.INT32, ir.DataType.INT64}
_PARTIAL: dict[str, Callable[[_Sweep, ir.Node], Partial | None]] = {
    "Shape": _shape, "Size": _size, "Gather": _gather, "Slice": _slice, "Concat": _concat,
    "Unsqueeze": _reshaped, "Squeeze": _reshaped, "Reshape": _reshaped, "Cast": _same, "Identity": _same,
    "Add": _arithmetic(lambda a, b: a + b), "Sub": _arithmetic(lambda a, b: a - b),
    "Mul": _arithmetic(lambda a, b: a * b), "Div": _arithmetic(_quotient),
}  # fmt: skip
