from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import add_initializer, constant, replace_value, static_shape
from edgesam_deploy.passes.program import Program

LIMIT = 1 << 26  # elements of a result: an Expand must not turn into a file
NEVER = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli",
    "DequantizeLinear",  # of a weight in 8 bit: without it no runtime knows that the layer is quantised
}  # fmt: skip

SEQUENCES = {"SequenceEmpty", "SequenceConstruct", "SplitToSequence", "Optional"}  # what they make is no tensor


@exact
def fold_constants(program: Program) -> int:
    """Compute now every node whose inputs are known: constants, and shapes that are static.

        Constant ── Concat ── Reshape(x, .)        Reshape(x, [0, 4096, 8, 16])
        W ── Transpose ── MatMul(x, .)             MatMul(x, W^T)

    Why: half of an exported decoder is this debris; runtimes differ in how much they clean up. Exact: ONNX's reference
    evaluator computes the values, all in one run, so the time grows linearly with the graph. Site = a node removed.
    """
    model = program.onnx
    before = len(model.graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    known: dict[ir.Value, NDArray[Any]] = {}
    foldable: list[ir.Node] = []
    inside: set[ir.Value] = set()
    for node in model.graph:
        shape = _shape_value(node)
        if shape is not None:
            known[node.outputs[0]] = shape
            inside.add(node.outputs[0])
        elif _foldable(node, inside):
            foldable.append(node)
            inside.update(node.outputs)
    boundary = [v for node in foldable for v in node.outputs if _is_read_outside(v, inside)]
    known.update(zip(boundary, _evaluate(model, foldable, boundary, known), strict=True))
    for value, array in known.items():
        if _is_read_outside(value, inside) and array.size <= LIMIT:  # its size was not always known before
            replace_value(value, add_initializer(model.graph, f"{value.name}_folded", array))
    common.RemoveUnusedNodesPass()(model)
    return before - len(model.graph)


def _shape_value(node: ir.Node) -> NDArray[Any] | None:
    """The value of a Shape node, or of the part of it that is asked for, where those dimensions are static."""
    if node.op_type != "Shape" or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    start, end = (node.attributes.get(k) for k in ("start", "end"))
    picked = list(node.inputs[0].shape)[start.as_int() if start else 0 : end.as_int() if end else None]
    return np.array(picked, dtype=np.int64) if all(isinstance(d, int) for d in picked) else None


def _foldable(node: ir.Node, inside: set[ir.Value]) -> bool:
    if node.op_type in NEVER | SEQUENCES or node.domain not in ("", "ai.onnx") or not node.outputs:
        return False
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return False
    if any(v is not None and v not in inside and constant(v) is None for v in node.inputs):
        return False
    sizes = [static_shape(v) for v in node.outputs]
    if any(s is not None and int(np.prod(s)) > LIMIT for s in sizes):
        return False
    return not any(v.is_graph_output() for v in node.outputs)


def _is_read_outside(value: ir.Value, inside: set[ir.Value]) -> bool:
    return any(not user.outputs or user.outputs[0] not in inside for user, _ in value.uses())


def _evaluate(
    model: ir.Model, nodes: list[ir.Node], wanted: list[ir.Value], known: dict[ir.Value, NDArray[Any]]
) -> list[NDArray[Any]]:
    """Values of ``wanted``, from one model that holds only the foldable nodes and the constants they read."""
    if not wanted:
        return []
    from onnx.reference import ReferenceEvaluator

    feeds: dict[str, NDArray[Any]] = {}
    for value in dict.fromkeys(v for node in nodes for v in node.inputs if v is not None):
        array = known.get(value)
        array = constant(value) if array is None else array
        if array is not None and value.name is not None:
            feeds[value.name] = array
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [ir.to_proto(node) for node in nodes],
            "constants",
            [
                onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                for n, a in feeds.items()
            ],
            [onnx.helper.make_empty_tensor_value_info(v.name or "") for v in wanted],
        ),
        opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()],
    )
    results = ReferenceEvaluator(proto).run(None, feeds)
    return [np.asarray(r) for r in results]
