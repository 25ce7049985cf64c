from __future__ import annotations

import logging

import onnx_ir as ir

from edgesam_deploy.errors import MissingToolkit, PassError
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

log = logging.getLogger(__name__)


@exact
def simplify(program: Program) -> int:
    """Let onnxsim simplify the graph, and refuse what it makes where that is no longer standard ONNX.

        Conv ── BatchNormalization ── Relu        Conv ── Relu

    Why: it knows hundreds of peephole rules, some of which pay on foreign files. It also brings in com.microsoft
    operators that nothing but ONNX Runtime runs, and takes GELU apart, which costs 1.2 times the encoder: so it is
    optional, stands before our own fusions, and is left out of every target's pipeline. Exact, as the engine's proof
    makes sure. Site = a node fewer.
    """
    try:
        import onnxsim
    except ImportError as e:
        raise MissingToolkit("the pass simplify needs onnxsim: pip install onnxsim, or leave the pass out") from e
    before = program.onnx
    proto, _ = onnxsim.simplify(ir.to_proto(before))
    after = ir.from_proto(proto)
    foreign = _domains(after) - _domains(before) - {"", "ai.onnx"}
    if foreign:
        raise PassError(f"simplify brought operators of {', '.join(sorted(foreign))} into {program.name}; leave it out")
    removed = len(before.graph) - len(after.graph)
    if removed <= 0:
        log.debug("simplify: %s has no fewer nodes after onnxsim", program.name)
        return 0
    after.ir_version = before.ir_version
    program.body = after
    return removed


def _domains(model: ir.Model) -> set[str]:
    return {node.domain for graph in model.graphs() for node in graph}
