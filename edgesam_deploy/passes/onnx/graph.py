"""What the ONNX passes share: reading constants, adding initialisers, replacing a node's result."""

from __future__ import annotations

from itertools import chain, count
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesam_deploy.passes.program import Program


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array behind an initialiser or a Constant node, else None. A graph input is never constant."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initialiser called ``name``, made unique."""
    results = {v.name for node in ir.traversal.RecursiveGraphIterator(graph) for v in node.outputs}
    taken = results.union(graph.initializers, (v.name for v in graph.inputs))
    unique = next(n for n in chain([name], (f"{name}_{i}" for i in count(1))) if n not in taken)
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=unique)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


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
