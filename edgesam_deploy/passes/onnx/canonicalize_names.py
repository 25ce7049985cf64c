from __future__ import annotations

import re

import onnx_ir as ir
from onnx_ir.passes import common

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.islands import MARK
from edgesam_deploy.passes.program import Program


@exact
def canonicalize_names(program: Program) -> int:
    """Name nodes by operator and position, dynamic dimensions by the contract, and drop the tracer's metadata.

        node_conv2d_17, s20, "File .../parts.py, line 73"        Conv_17, batch

    Why: names are what reports, bisection and people point at, and they must be the same in every build; stack traces
    carry paths of the machine that built. Exact. Site = a node or value that was changed.
    """
    model, sites = program.onnx, 0
    symbols = _symbols(program)
    counts: dict[str, int] = {}
    for node in model.graph:
        index = counts[node.op_type] = counts.get(node.op_type, -1) + 1
        name = f"{node.op_type}_{index}"
        sites += node.name != name or bool(node.metadata_props.keys() - {MARK} or node.doc_string)
        node.name = name
    marks = {node: node.metadata_props[MARK] for node in model.graph if MARK in node.metadata_props}
    common.ClearMetadataAndDocStringPass()(model)
    for node, island in marks.items():  # emission reads them, and drops them
        node.metadata_props[MARK] = island
    for graph in model.graphs():
        for value in [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]:
            sites += bool(value.metadata_props or value.doc_string) | _rename_dims(value, symbols)
            value.metadata_props.clear()
            value.doc_string = None
    return sites + _sort_initializers(model.graph)


def _symbols(program: Program) -> dict[str, str]:
    """The tracer's name of each dynamic dimension -> the contract's."""
    found = {}
    for value, spec in zip(program.onnx.graph.inputs, program.inputs, strict=True):
        for axis, name in spec.dynamic.items():
            dim = value.shape[axis] if value.shape is not None else None
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                found[dim.value] = name
    return found


def _rename_dims(value: ir.Value, symbols: dict[str, str]) -> bool:
    if value.shape is None:
        return False
    before = value.shape  # it may be frozen, or another value's too
    value.shape = ir.Shape([_renamed(dim, symbols) for dim in before])
    return str(value.shape) != str(before)


def _renamed(dim: int | ir.SymbolicDim, symbols: dict[str, str]) -> int | ir.SymbolicDim | str:
    if not isinstance(dim, ir.SymbolicDim) or dim.value is None:
        return dim
    return re.sub(r"[A-Za-z_]\w*", lambda m: symbols.get(m[0], m[0]), dim.value)


def _sort_initializers(graph: ir.Graph) -> bool:
    """In the order of first use: a stable file, and weights lie as they are read. Whether that changed anything."""
    before = list(graph.initializers)
    used = dict.fromkeys(v for node in graph for v in node.inputs if v is not None and v.is_initializer())
    for value in used:
        name = value.name
        assert name is not None
        graph.initializers.pop(name)
        graph.register_initializer(value)
    return list(graph.initializers) != before
