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

    half: arithmetic and weights in fp16, but for what computes the operands of sines and cosines. The trace is lowered
    to core operators first, which is all that the frontend reads.
    """
    ct = require("coremltools", PURPOSE)
    return ct.convert(
        program.aten.run_decompositions({}),
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, deployment_target),
        compute_precision=_half(ct) if half else ct.precision.FLOAT32,
        inputs=[ct.TensorType(name=s.name, shape=s.bound({}), dtype=np.float32) for s in program.inputs],
        outputs=[ct.TensorType(name=s.name, dtype=_type(s)) for s in program.outputs],
        skip_model_load=True,
    )


def _half(ct: Any) -> Any:
    return ct.transform.FP16ComputePrecision(op_selector=lambda op: not feeds(op, EXACTLY))


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


def _type(spec: TensorSpec) -> type[np.generic]:
    return np.int32 if spec.dtype == "int32" else np.float32
