from __future__ import annotations

from edgesam_deploy.passes.aten.graph import AtenGraph
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program


@exact
def eliminate_dead(program: Program) -> int:
    """Remove operators and constants whose value nobody reads.

    Why: runtimes do not do it for you; ONNX Runtime executes dead nodes. With stability scores in the graph the whole
    IoU head is dead, for instance. Exact.
    """
    before = len(program.aten.graph.nodes)
    AtenGraph(program).clean()
    return before - len(program.aten.graph.nodes)
