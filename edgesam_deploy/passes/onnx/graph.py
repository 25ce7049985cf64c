"""What the ONNX passes share: reading constants, adding initialisers, replacing a node's result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesam_deploy.passes.program import Program

# per graph: how many nodes it had when last looked at, and the names of their results; goes when the graph does
_KNOWN_RESULTS: WeakKeyDictionary[ir.Graph, tuple[int, set[str | None]]] = WeakKeyDictionary()


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array behind an initialiser or a Constant node, else None. A graph input is never constant."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def integers(value: ir.Value | None) -> NDArray[Any] | None:
    """The constant if it is one of integers."""
    array = constant(value)
    return array if array is not None and array.dtype.kind in "iu" else None


def scalar(value: ir.Value | None) -> float | None:
    """The number behind a constant of one element."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    array = constant(value)
    return None if array is None or array.dtype.kind not in "fiuV" else float(array.item())


def rank(value: ir.Value | None) -> int | None:
    """How many axes a value has, where that is known."""
    return None if value is None or value.shape is None else len(value.shape)


def is_standard(node: ir.Node, *op_types: str) -> bool:
    """Whether a node is of ONNX's own operator set, and one of ``op_types`` if any are named."""
    return node.domain in ("", "ai.onnx") and (not op_types or node.op_type in op_types)


def has_graphs(node: ir.Node) -> bool:
    """Whether a node has a body, as If, Loop and Scan do."""
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def opset(program: Program) -> int:
    """The version of ONNX's own operator set that the program is written in."""
    imports = program.onnx.opset_imports
    return imports.get("", imports.get("ai.onnx", 1))


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initialiser called ``name``, made unique."""
    unique = _unique(graph, name)
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=unique)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def add_node(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    dtype: ir.DataType | None = None,
    shape: Iterable[int | str | ir.SymbolicDim | None] | None = None,
) -> ir.Value:
    """The result, called ``name`` made unique, of a new node in front of another one of the main graph.

    ``name`` and ``dtype`` are by default those of the other node's result.
    """
    graph, other = before.graph, before.outputs[0]
    assert isinstance(graph, ir.Graph)
    unique = _unique(graph, name if name is not None else f"{other.name}_{op_type.lower()}")
    node = ir.node(op_type, inputs, attributes, name=unique)
    (result,) = node.outputs
    result.name = unique
    wanted = dtype if dtype is not None else other.dtype
    result.type = None if wanted is None else ir.TensorType(wanted)
    result.shape = None if shape is None else ir.Shape(shape)
    names = _result_names(graph)
    graph.insert_before(before, node)
    names.add(unique)
    _KNOWN_RESULTS[graph] = len(graph), names
    return result


def _unique(graph: ir.Graph, name: str) -> str:
    results = _result_names(graph)
    others = {v.name for v in chain(graph.inputs, graph.outputs)}
    candidates = chain([name], (f"{name}_{i}" for i in count(1)))
    return next(n for n in candidates if n not in results and n not in others and n not in graph.initializers)


def _result_names(graph: ir.Graph) -> set[str | None]:
    """Names of what nodes compute, those of nested graphs included.

    Gathered once per number of nodes: collecting them for every initialiser took a pass over a ViT from linear to
    quadratic. ``add_node`` keeps the collection; whatever else adds or removes nodes changes their number.
    """
    size, names = _KNOWN_RESULTS.get(graph, (-1, set()))
    if size != len(graph):
        names = {v.name for node in ir.traversal.RecursiveGraphIterator(graph) for v in node.outputs}
        _KNOWN_RESULTS[graph] = len(graph), names
    return names


def replace_value(old: ir.Value, new: ir.Value) -> bool:
    """Let every reader of ``old`` read ``new``; False where that is impossible.

    A graph output keeps its name: the new producer takes it over. It cannot where ``new`` is itself an input, an
    initialiser or an output of the graph.
    """
    if old.is_graph_output():
        if new.is_graph_output() or new.is_graph_input() or new.is_initializer() or new.producer() is None:
            return False
        name, old.name = old.name, None
        new.name = name
        new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    return True


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape if every dimension is a number."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]


def dims(value: ir.Value | None) -> list[str] | None:
    """The dimensions as text, symbols included; None where the rank or a dimension is unknown."""
    if value is None or value.shape is None:
        return None
    texts = [str(d.value) if isinstance(d, ir.SymbolicDim) else str(d) for d in value.shape]
    return None if "None" in texts else texts


def count_removed(program: Program, rewrite: ir.passes.InPlacePass) -> int:
    """Run a pass of onnx_ir's library and return by how many nodes the graph shrank."""
    before = len(program.onnx.graph)
    rewrite(program.onnx)
    return before - len(program.onnx.graph)
