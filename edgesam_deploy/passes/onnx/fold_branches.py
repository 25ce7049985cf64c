from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.onnx.graph import add_node, constant, is_standard, replace_value
from edgesam_deploy.passes.program import Program


@exact
def fold_branches(program: Program) -> int:
    """Replace an If whose condition is known by the branch that is taken.

        Shape ── Equal(1) ── If(Squeeze, Identity)        Squeeze

    Why: `x.squeeze(1)` of a dynamic dimension is exported as an If on the shape; once the shape is static the other
    branch is dead, but no vendor compiler takes an If at all. Exact.
    """
    graph = program.onnx.graph
    sites = sum(_inline(program, node) for node in list(graph) if is_standard(node, "If"))
    if sites:
        common.RemoveUnusedNodesPass()(program.onnx)  # the If itself too
        common.NameFixPass()(program.onnx)
    return sites


def _inline(program: Program, node: ir.Node) -> bool:
    condition = constant(node.inputs[0])
    if condition is None:
        return False
    branch = node.attributes["then_branch" if condition.item() else "else_branch"].as_graph()
    graph, results = program.onnx.graph, list(branch.outputs)
    branch.outputs.clear()
    for value in list(branch.initializers.values()):
        branch.initializers.pop(str(value.name))
        value.name = f"{node.outputs[0].name}_{value.name}"
        graph.register_initializer(value)
    nodes = list(branch)
    branch.remove(nodes)
    graph.insert_before(node, nodes)
    for old, new in zip(node.outputs, results, strict=True):
        # of its own: a branch may return a constant, or the same value twice
        name = f"{old.name}_taken"
        replace_value(old, add_node(node, "Identity", [new], name=name, dtype=old.dtype, shape=old.shape))
    return True
