from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from edgesam_deploy.errors import PassError, UsageError
from edgesam_deploy.passes.engine import Pass, approximate
from edgesam_deploy.passes.islands import MARK
from edgesam_deploy.passes.onnx.graph import add_initializer, add_node, constant, has_graphs, is_standard, opset
from edgesam_deploy.passes.program import Program

Half = Literal["fp16", "bf16"]
FLOAT = ir.DataType.FLOAT
DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
TYPES = {"fp16": "float16", "bf16": "bfloat16"}  # as schemas name them; Conv has the latter from opset 22 on
BOUNDS = {"fp16": 5e-3, "bf16": 4e-2}  # relative L2 on random inputs; 46 and 28 dB
LARGEST = {"fp16": 65504.0, "bf16": 3.3895e38}
WHY = "each value keeps 11 significant bits (fp16) or 8 (bf16); sums, norms, softmax and positions keep fp32"
# values of these roles are codes, pixels or positions up to 1,024: what is computed from them alone goes through many
# turns of sine and cosine, or is compared
CODES = frozenset({"coords", "labels", "flag", "image", "resized_size", "original_size"})
COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
NORMS = frozenset({"LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization",
                   "BatchNormalization", "LpNormalization"})  # fmt: skip
SUMS = frozenset({"ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "CumSum",
                  "AveragePool", "GlobalAveragePool"})  # fmt: skip
STEEP = frozenset({"Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Sin", "Cos"})
SINGLE = NORMS | SUMS | STEEP | COMPARISONS
POINTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Clip", "Sqrt", "Reciprocal", "Identity"}
)


def cast_to_half(kind: Half, *, fused_attention: bool = False) -> Pass:
    """The pass that types a program: ``kind`` for its values, fp32 where those would not hold them.

    fused_attention: the softmax between two products computes in half as well, since a Cast on either side keeps
    TensorRT from making one kernel of the three. Raises UsageError for another kind; the pass raises PassError naming a
    weight beyond the largest number of its own.
    """
    if kind not in DTYPES:
        raise UsageError(f"{kind}: must be {' or '.join(DTYPES)}")

    def cast(program: Program) -> int:
        """Give every value a type of its own: half, or fp32 for norms, sums, softmax, positions and comparisons.

            x ── Conv ── LayerNormalization ── y        x ── Cast(half) ── Conv ── Cast(float) ── LayerNorm. ── y

        Why: TensorRT 11 takes no precision but the graph's, and TensorRT 10 chooses badly where it may: a squared
        deviation beyond 256 overflows, sums of a map lose bits, and a phase of 20 turns has an error of 0.01 turns.
        So do the program's fp32 islands. Inputs and outputs stay fp32. A weight that half cannot hold is an error.
        Site = a node that computes in half.
        """
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(program.onnx)
        _infer_types(program)
        typing = _Typing(program, kind, single_nodes(program, fused_attention=fused_attention))
        sites = sum(typing.visit(node) for node in list(program.onnx.graph))
        typing.finish()
        common.RemoveUnusedNodesPass()(program.onnx)
        return sites

    cast.__name__ = "cast_to_half"
    return approximate(BOUNDS[kind], WHY)(cast)


def single_nodes(program: Program, *, fused_attention: bool = False) -> set[ir.Node]:
    """The nodes that keep fp32.

    * norms, sums, softmax and what else is steep or adds many values up: ``SINGLE``;
    * fp32 islands, which lowering has marked;
    * what leads from codes and positions alone to a sine, a cosine or a comparison;
    * counts, sums of what a comparison gave, and what is made of them point by point: a mask has 65,536 pixels, and
      fp16 ends at 65,504;
    * pixels before the first convolution or product;
    * what lies between such nodes and is pointwise, as the eps of a norm in pieces does.
    """
    nodes = list(program.onnx.graph)
    roles = {spec.name: spec.role for spec in program.inputs}
    codes = {v for v in program.onnx.graph.inputs if roles.get(str(v.name)) in CODES}
    known = _computed_from(codes, nodes)
    chosen = {node for node in nodes if is_standard(node, *SINGLE) and not (fused_attention and _in_attention(node))}
    chosen |= {node for node in nodes if MARK in node.metadata_props}
    chosen |= _leading_to(known, [n for n in known if n.op_type in ("Sin", "Cos") or n.op_type in COMPARISONS])
    chosen |= _pointwise_behind({n for n in nodes if n.op_type in SUMS and _is_count(n)}, nodes)
    pixels = {v for v in codes if v.dtype == ir.DataType.UINT8}
    chosen |= _computed_from(pixels, nodes, but=("Conv", "MatMul", "Gemm"), other=codes)
    return chosen | _between(chosen, nodes)


def _in_attention(node: ir.Node) -> bool:
    """Whether a node is the softmax of attention: what reads it are products."""
    readers = [user.op_type for v in node.outputs for user, _ in v.uses()]
    return node.op_type == "Softmax" and bool(readers) and set(readers) == {"MatMul"}


def _computed_from(
    sources: Collection[ir.Value], nodes: Iterable[ir.Node], but: Collection[str] = (), other: Collection[ir.Value] = ()
) -> set[ir.Node]:
    """The nodes that read ``sources``, what such nodes make, and constants, and at least one of the first two.

    ``but``: operators at which it ends. ``other``: values that may be read as well.
    """
    values, found = set(sources), set()
    allowed = set(other)
    for node in nodes:
        read = [v for v in node.inputs if v is not None and not v.is_initializer()]
        if node.op_type in but or not any(v in values for v in read):
            continue
        if all(v in values or v in allowed or _is_shape(v) for v in read):
            values.update(node.outputs)
            found.add(node)
    return found


def _is_shape(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.INT64, ir.DataType.INT32)


def _leading_to(among: Collection[ir.Node], ends: Iterable[ir.Node]) -> set[ir.Node]:
    found, stack = set(), list(ends)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            producers = (v.producer() for v in node.inputs if v is not None)
            stack += [p for p in producers if p is not None and p in among]
    return found


def _is_count(node: ir.Node) -> bool:
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    value = source.inputs[0] if source is not None and source.op_type == "Cast" else None
    return value is not None and value.dtype == ir.DataType.BOOL


def _pointwise_behind(starts: Collection[ir.Node], nodes: Iterable[ir.Node]) -> set[ir.Node]:
    found = set(starts)
    for node in nodes:
        if is_standard(node, *POINTWISE) and any(v is not None and v.producer() in found for v in node.inputs):
            found.add(node)
    return found


def _between(chosen: Collection[ir.Node], nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """Pointwise nodes that read results of chosen nodes, and constants, and whose readers are all chosen."""
    found: set[ir.Node] = set()
    for node in reversed(list(nodes)):
        producers = [v.producer() for v in node.inputs if v is not None and not v.is_initializer()]
        readers = [user for v in node.outputs for user, _ in v.uses()]
        inside = readers and all(user in chosen or user in found for user in readers)
        if is_standard(node, *POINTWISE) and inside and producers and all(p in chosen for p in producers):
            found.add(node)
    return found


def _infer_types(program: Program) -> None:
    common.ShapeInferencePass(data_prop=True)(program.onnx)
    untyped = [v.name for node in program.onnx.graph for v in node.outputs if v.dtype is None and (v.name or v.uses())]
    if untyped:
        raise PassError(f"{program.name}: the type of {untyped[0]} is not known, so it cannot be given another")


class _Typing:
    """One walk over the graph in its order: each node's floats get the type that the node computes in."""

    def __init__(self, program: Program, kind: Half, single: Collection[ir.Node]) -> None:
        self.program, self.kind, self.half = program, kind, DTYPES[kind]
        self.graph = program.onnx.graph
        self.opset = opset(program)
        self.single = single
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.given = [value.dtype for value in self.graph.outputs]

    def visit(self, node: ir.Node) -> bool:
        takes, gives = _float_ports(node.op_type, self.opset, self.kind, len(node.inputs), len(node.outputs))
        halved = is_standard(node) and node not in self.single and not has_graphs(node) and bool(takes or gives)
        wanted = self.half if halved else FLOAT
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (FLOAT, self.half):
                port = wanted if index in takes else FLOAT
                if value.dtype != port and node.op_type != "Cast":
                    node.replace_input_with(index, self.cast(node, value, port))
        if has_graphs(node):
            self.widen_for_nested(node)
        changed = False
        for index in gives if is_standard(node) and not has_graphs(node) else ():
            value = node.outputs[index]
            if value.dtype in (FLOAT, self.half) and value.dtype != wanted:  # a file may hold halves already
                value.type = ir.TensorType(wanted)
                _retype(node, wanted)
                changed = True
        return changed

    def cast(self, before: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``value`` in the other type, made in front of the first node that asks for it; a weight is converted here."""
        if (value, dtype) not in self.casts:
            array = constant(value)
            if array is not None:
                made = add_initializer(self.graph, str(value.name), self.converted(str(value.name), array, dtype))
            else:
                name = f"{value.name}_{'half' if dtype == self.half else 'float'}"
                made = add_node(before, "Cast", [value], {"to": dtype}, name=name, dtype=dtype, shape=value.shape)
            self.casts[value, dtype] = made
        return self.casts[value, dtype]

    def widen_for_nested(self, node: ir.Node) -> None:
        """What branches and bodies read of this graph is fp32, as they are."""
        nested = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        for inner in (n for graph in nested for n in ir.traversal.RecursiveGraphIterator(graph)):
            for index, value in enumerate(inner.inputs):
                if value is not None and value.dtype == self.half:
                    inner.replace_input_with(index, self.cast(node, value, FLOAT))

    def converted(self, name: str, array: np.ndarray, dtype: ir.DataType) -> np.ndarray:
        most = LARGEST[self.kind]
        worst = float(np.abs(array).max(initial=0))
        if dtype == self.half and not worst <= most:
            raise PassError(
                f"{self.program.name}: weight {name} holds {worst:.4g}, and {self.kind} ends at {most:.5g}; "
                "build with --precision bf16 or fp32, or scale the checkpoint"
            )
        return array.astype(dtype.numpy())

    def finish(self) -> None:
        """Outputs keep their types: a Cast at the end takes over the name."""
        for index, (value, given) in enumerate(zip(list(self.graph.outputs), self.given, strict=True)):
            if given not in (FLOAT, self.half) or value.dtype == given:
                continue
            name, result = value.name, self.casts.get((value, given))
            if result is None:
                node = ir.node("Cast", [value], {"to": given}, name=f"{name}_{'float' if given == FLOAT else 'half'}")
                (result,) = node.outputs
                result.type, result.shape = ir.TensorType(given), value.shape
                self.graph.append(node)
            self.graph.outputs[index] = result
            value.name, result.name = f"{name}_{'half' if given == FLOAT else 'float'}", name


def _retype(node: ir.Node, half: ir.DataType) -> None:
    """The attribute that makes a result fp32."""
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", half)
    held = node.attributes.get("value")
    if node.op_type == "ConstantOfShape":
        array = np.zeros(1, np.float32) if held is None else held.as_tensor().numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array.astype(half.numpy())))


@cache
def _float_ports(
    op_type: str, version: int, kind: Half, inputs: int, outputs: int
) -> tuple[frozenset[int], frozenset[int]]:
    """Inputs and results that may be of that kind by ONNX's own schema, where it has fp32 as well."""
    if not onnx.defs.has(op_type):
        return frozenset(), frozenset()
    schema = onnx.defs.get_schema(op_type, version, "")
    free = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if {"tensor(float)", f"tensor({TYPES[kind]})"} <= set(constraint.allowed_type_strs)
    }
    found = (
        frozenset(i for i in range(count) if formal[min(i, len(formal) - 1)].type_str in free)
        for formal, count in ((schema.inputs, inputs), (schema.outputs, outputs))
    )
    takes, gives = found
    return takes, gives
