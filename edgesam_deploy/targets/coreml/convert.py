"""From an aten program to an ML Program, by coremltools' torch.export frontend, with the contract's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgesam_deploy.contract import TensorSpec
from edgesam_deploy.toolkits import require

if TYPE_CHECKING:
    from edgesam_deploy.passes.program import Program

PURPOSE = "building for coreml"
EXACTLY = ("sin", "cos")  # fp16 has a step of 0.5 from 512 on, and ten radians need more than its 11 bits
DEPLOYMENT_TARGETS = ("iOS16", "iOS17", "iOS18")


def convert(program: Program, *, deployment_target: str, half: bool) -> Any:
    """The program as coremltools' MLModel, static shapes, inputs and outputs fp32.

    half: arithmetic and weights in fp16, but for what computes the operands of sines and cosines, and for the program's
    islands. The trace is lowered to core operators first, which is all that the frontend reads.
    """
    ct = require("coremltools", PURPOSE)
    lowered = program.aten.run_decompositions({})
    kept = lowered_names(lowered, program.islands)
    return ct.convert(
        lowered,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, deployment_target),
        compute_precision=_half(ct, kept) if half else ct.precision.FLOAT32,
        inputs=[ct.TensorType(name=s.name, shape=s.bound({}), dtype=np.float32) for s in program.inputs],
        outputs=[ct.TensorType(name=s.name, dtype=_type(s)) for s in program.outputs],
        skip_model_load=True,
    )


def _half(ct: Any, kept: frozenset[str]) -> Any:
    return ct.transform.FP16ComputePrecision(op_selector=lambda op: not (feeds(op, EXACTLY) or in_island(op, kept)))


def lowered_names(lowered: Any, islands: frozenset[str]) -> frozenset[str]:
    """The nodes of a lowered trace that came of ``islands``; the converter names its operations after them."""
    sources = {n.name: n.meta["from_node"][-1].name for n in lowered.graph.nodes if n.meta.get("from_node")}
    return frozenset(name for name, source in sources.items() if source in islands)


def in_island(op: Any, kept: frozenset[str]) -> bool:
    """Whether a MIL operation computes a node of ``kept``, or is a step that the converter put between two such."""
    if kept & {op.name, *(value.name for value in op.outputs)}:
        return True
    before = {value.op.name for value in op.inputs.values() if getattr(value, "op", None) is not None}
    after = {reader.name for value in op.outputs for reader in value.child_ops}
    return bool(kept & before) and bool(kept & after)


def feeds(op: Any, kinds: tuple[str, ...]) -> bool:
    """Whether a MIL operation is of one of ``kinds`` or some way leads from it to one that is."""
    seen: set[int] = set()
    waiting = [op]
    while waiting:
        op = waiting.pop()
        if op.op_type in kinds:
            return True
        if id(op) not in seen:
            seen.add(id(op))
            waiting += [reader for value in op.outputs for reader in value.child_ops]
    return False


def leading_to(program: Program, kinds: tuple[str, ...]) -> frozenset[str]:
    """The same of the aten program: the nodes of one of ``kinds``, and those from which some way leads to one."""
    found: set[str] = set()
    for node in reversed(program.aten.graph.nodes):
        mine = node.op == "call_function" and str(node.target).removeprefix("aten.").split(".")[0] in kinds
        if mine or any(reader.name in found for reader in node.users):
            found.add(node.name)
    return frozenset(found)


def _type(spec: TensorSpec) -> type[np.generic]:
    return np.int32 if spec.dtype == "int32" else np.float32
