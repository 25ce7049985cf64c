from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import add_initializer, add_node, constant, has_graphs, is_standard, opset
from edgesam_deploy.passes.program import Program

INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64
LIMITS = np.iinfo(np.int32)
SATURATING = {"Slice": (1, 2)}  # operands where "as far as it goes" is written as the largest integer there is
SOURCES = ("Cast", "ConstantOfShape")  # an attribute says that their result is int64
LACKING = {
    "EyeLike", "Bernoulli",  # whose result takes the type of an operand that the schema does not tie to it
    "BitCast",  # its result has as many bits as its operand
    "Unique",  # no int32 in ONNX Runtime
    "CenterCropPad",  # ONNX Runtime runs it as its ONNX function, whose constants are int64
}  # fmt: skip
STUCK = {("Pad", 3)}  # the schema takes int32 axes, ONNX's own shape inference does not
FORCED = "not standard ONNX: every int64 was forced to int32 for one vendor's compiler"


@exact
def narrow_int64_data(program: Program) -> int:
    """Compute with int32 wherever ONNX allows it; what it requires to be int64 stays a constant or gets a Cast.

        labels (int64) ── Add(int64) ── Gather        labels ── Cast(int32) ── Add(int32) ── Gather

    Why: NPUs and CoreML have no 64-bit integers. Scripts that rewrite all of them make files that neither ONNX's
    checker nor ONNX Runtime accepts, since Reshape, Expand, Tile and the like require int64: here each operand's type
    is looked up in ONNX's own schema. Exact while no value leaves the range of int32; constants that do, stay. Inputs
    and outputs keep their type. Site = a node whose type changed.
    """
    model = program.onnx
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    narrowing = _Narrowing(program)
    sites = sum(narrowing.visit(node) for node in list(model.graph))
    narrowing.finish()
    common.RemoveUnusedNodesPass()(model)
    return sites


def force_int32(model: ir.Model) -> int:
    """Turn every int64 into int32 whatever ONNX says, and write so into the file's metadata.

    For vendor compilers that accept no int64 at all. The result is NOT standard ONNX: its checker and ONNX Runtime
    refuse it, so it cannot be proved; prove the program first. Returns how many values changed. Raises ValueError for a
    constant that int32 cannot hold (int64's ends, which Slice means as "all", saturate).
    """
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    sites = 0
    for graph in model.graphs():
        values = [*graph.inputs, *(v for node in graph for v in node.outputs)]
        if isinstance(graph, ir.Graph):
            values += [v for v in graph.initializers.values() if v not in graph.inputs]
        for value in values:
            if value.const_value is not None and value.const_value.dtype == INT64:
                value.const_value = ir.Tensor(_forced(value), name=value.name)
            if value.dtype == INT64:
                value.dtype = INT32
                sites += 1
        for node in graph:
            _retype_attribute(node)
    if sites:
        model.metadata_props["edgesam_deploy.int64"] = FORCED
    return sites


def _forced(value: ir.Value) -> NDArray[np.int32]:
    assert value.const_value is not None
    array = value.const_value.numpy()
    ends = np.isin(array, [np.iinfo(np.int64).max, np.iinfo(np.int64).min, np.iinfo(np.int64).min + 1])
    if not ((LIMITS.min <= array) & (array <= LIMITS.max) | ends).all():
        raise ValueError(f"constant {value.name} holds integers that int32 cannot; leave --int64 force out")
    held: NDArray[np.int32] = np.clip(array, LIMITS.min, LIMITS.max).astype(np.int32)
    return held


class _Narrowing:
    """One walk over the main graph in its order. What nested graphs read stays int64."""

    def __init__(self, program: Program) -> None:
        self.graph = program.onnx.graph
        self.opset = opset(program)
        self.retyped: set[ir.Value] = set()  # results that were int64 and are int32 now
        self.casts: dict[ir.Value, ir.Value] = {}  # value -> the same in the other of the two types

    def visit(self, node: ir.Node) -> bool:
        inputs, results = self.flexible(node)
        changed = False
        for index, value in enumerate(node.inputs):
            if value is not None and _is_int64(value) and index in inputs:
                node.replace_input_with(index, self.narrow(node, value))
                changed = True
            elif value in self.retyped and index not in inputs:
                node.replace_input_with(index, self.cast(node, value, INT64))
        if has_graphs(node):
            self.keep_for_nested(node)
        for index in results:
            node.outputs[index].type = ir.TensorType(INT32)  # a new one: values may share theirs, an input's among them
            self.retyped.add(node.outputs[index])
        if results:
            _retype_attribute(node)
        return changed or bool(results)

    def flexible(self, node: ir.Node) -> tuple[set[int], set[int]]:
        """Inputs that may be int32 and int64 results that shall be."""
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        if not is_standard(node) or has_graphs(node) or node.op_type in LACKING:
            return set(), set()
        if not all(isinstance(v.type, ir.TensorType) for v in values if v.name):
            return set(), set()  # a sequence keeps the type of its tensors
        inputs: set[int] = set()
        results: set[int] = set()
        for fed, made in _ports(node.op_type, self.opset, len(node.inputs), len(node.outputs)):
            made64 = {i for i in made if node.outputs[i].dtype == INT64}
            narrows = all(self.fits(node, i) for i in fed)
            if node.op_type == "Cast" and fed:
                source = node.inputs[0]
                narrows = source in self.retyped or constant(source) is not None
            elif node.op_type in SOURCES and not fed:
                narrows = any(self.is_welcome(user, i) for v in made64 for user, i in node.outputs[v].uses())
            elif not fed:
                narrows = False  # the type of the result comes from nowhere that could be changed
            if narrows:
                inputs |= fed
                results |= made64
        return inputs, results

    def fits(self, node: ir.Node, index: int) -> bool:
        array = constant(node.inputs[index])
        if (node.op_type, index) in STUCK:
            return False
        if array is None or array.dtype != np.int64 or index in SATURATING.get(node.op_type, ()):
            return True
        return bool(((LIMITS.min <= array) & (array <= LIMITS.max)).all())

    def is_welcome(self, user: ir.Node, index: int) -> bool:
        """Whether a reader takes int32. A Cast takes anything, which is no reason to change what it reads."""
        if user.op_type == "Cast" or user.graph is not self.graph:
            return False
        return index in self.flexible(user)[0]

    def narrow(self, node: ir.Node, value: ir.Value) -> ir.Value:
        array = constant(value)
        if array is None or value in self.casts:
            return self.cast(node, value, INT32)
        held = np.clip(array, LIMITS.min, LIMITS.max).astype(np.int32)
        self.casts[value] = add_initializer(self.graph, f"{value.name}_int32", held)
        return self.casts[value]

    def cast(self, before: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``value`` in the other type, made in front of the first node that asks for it."""
        if value not in self.casts:
            name = f"{value.name}_{dtype.name.lower()}"
            to = {"to": dtype}
            self.casts[value] = add_node(before, "Cast", [value], to, name=name, dtype=dtype, shape=value.shape)
        return self.casts[value]

    def keep_for_nested(self, node: ir.Node) -> None:
        for attribute in node.attributes.values():
            if attribute.type != ir.AttributeType.GRAPH:
                continue
            nested = attribute.as_graph()
            for inner in ir.traversal.RecursiveGraphIterator(nested):
                for index, value in enumerate(inner.inputs):
                    if value in self.retyped:
                        inner.replace_input_with(index, self.cast(node, value, INT64))

    def finish(self) -> None:
        """Graph outputs keep their type: a Cast at the end takes over the name."""
        for index, value in enumerate(list(self.graph.outputs)):
            if value not in self.retyped:
                continue
            name = value.name
            node = ir.node("Cast", [value], {"to": INT64}, name=f"{name}_int64")
            node.outputs[0].dtype, node.outputs[0].shape = INT64, value.shape
            self.graph.append(node)
            self.graph.outputs[index] = node.outputs[0]
            if not value.is_graph_output():
                value.name = f"{name}_int32"
                node.outputs[0].name = name


def _is_int64(value: ir.Value) -> bool:
    return value.dtype == INT64


def _retype_attribute(node: ir.Node) -> None:
    """The attribute that makes a result int64."""
    if node.op_type == "Cast" and node.attributes["to"].as_int() == INT64:
        node.attributes["to"] = ir.AttrInt64("to", INT32)
    value = node.attributes.get("value")
    if node.op_type == "ConstantOfShape" and value is not None and value.as_tensor().dtype == INT64:
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(value.as_tensor().numpy().astype(np.int32)))


@cache
def _ports(op_type: str, version: int, inputs: int, outputs: int) -> tuple[tuple[frozenset[int], frozenset[int]], ...]:
    """Inputs and results that share a type variable, for each variable that may be int32 as well as int64."""
    if not onnx.defs.has(op_type):
        return ()
    schema = onnx.defs.get_schema(op_type, version, "")
    found = []
    for constraint in schema.type_constraints:
        if {"tensor(int32)", "tensor(int64)"} <= set(constraint.allowed_type_strs):
            ports = (
                frozenset(i for i in range(n) if formal[min(i, len(formal) - 1)].type_str == constraint.type_param_str)
                for formal, n in ((schema.inputs, inputs), (schema.outputs, outputs))
            )
            found.append(tuple(ports))
    return tuple((fed, made) for fed, made in found)
