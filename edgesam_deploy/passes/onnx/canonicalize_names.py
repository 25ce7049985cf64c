from __future__ import annotations

import re

import onnx_ir as ir

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program


@exact
def canonicalize_names(program: Program) -> int:
    """Name nodes by operator and position, dynamic dimensions by the contract, and drop the tracer's metadata.

        node_conv2d_17, s20, "File .../parts.py, line 73"        Conv_17, batch

    Why: names are what reports, bisection and people point at, and they must be the same in every build; stack traces
    carry paths of the machine that built. Exact. Site = a node renamed.
    """
    model = program.onnx
    ir.passes.common.ClearMetadataAndDocStringPass()(model)
    symbols = _symbols(program)
    counts: dict[str, int] = {}
    for node in model.graph:
        index = counts[node.op_type] = counts.get(node.op_type, -1) + 1
        node.name = f"{node.op_type}_{index}"
    for value in [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]:
        _rename_dims(value, symbols)
    _sort_initializers(model.graph)
    return len(model.graph)


def _symbols(program: Program) -> dict[str, str]:
    """The tracer's name of each dynamic dimension -> the contract's."""
    found = {}
    for value, spec in zip(program.onnx.graph.inputs, program.inputs, strict=True):
        for axis, name in spec.dynamic.items():
            dim = value.shape[axis] if value.shape is not None else None
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                found[dim.value] = name
    return found


def _rename_dims(value: ir.Value, symbols: dict[str, str]) -> None:
    if value.shape is None:
        return
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
            value.shape[axis] = re.sub(r"[A-Za-z_]\w*", lambda m: symbols.get(m[0], m[0]), dim.value)


def _sort_initializers(graph: ir.Graph) -> None:
    """In the order of first use: a stable file, and weights lie as they are read."""
    used = dict.fromkeys(v for node in graph for v in node.inputs if v is not None and v.is_initializer())
    for value in used:
        name = value.name
        assert name is not None
        graph.initializers.pop(name)
        graph.register_initializer(value)
