from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgesam_deploy.passes.engine import Pass, exact
from edgesam_deploy.passes.program import Program


def freeze_dims(sizes: Mapping[str, int]) -> Pass:
    """The pass that gives the dynamic dimensions named in ``sizes`` those sizes.

    Inputs of these sizes are what it can be proved on: the program's specs must have them already.
    """

    def freeze(program: Program) -> int:
        """Give named dynamic dimensions one size each, so that everything computed from them becomes constant.

            point_coords (1, num_points, 2)        point_coords (1, 6, 2)

        Why: NPU and mobile compilers take static graphs only, and two thirds of a dynamic decoder's 1,038 nodes
        compute shapes. Exact for inputs of that size. Site = a value with such a dimension.
        """
        values = [value for graph in program.onnx.graphs() for value in _values(graph)]
        return sum(_freeze(value, sizes) for value in values)

    freeze.__name__ = "freeze_dims"
    return exact(freeze)


def _values(graph: ir.Graph | ir.Function) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


def _freeze(value: ir.Value, sizes: Mapping[str, int]) -> bool:
    if value.shape is None:
        return False
    before = list(value.shape)
    after = [sizes.get(d.value, d) if isinstance(d, ir.SymbolicDim) else d for d in before]  # type: ignore[arg-type]
    if after == before:
        return False
    value.shape = ir.Shape(after)
    return True
