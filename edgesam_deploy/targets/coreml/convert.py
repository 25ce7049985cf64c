"""From an aten program to an ML Program, by coremltools' torch.export frontend, with the contract's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgesam_deploy.contract import DEFAULT_POINTS, TensorSpec
from edgesam_deploy.passes.islands import lowered_names
from edgesam_deploy.passes.program import operator
from edgesam_deploy.targets.coreml.compensate import with_compensated_weights
from edgesam_deploy.targets.coreml.fine_maps import on_fine_maps
from edgesam_deploy.targets.coreml.rounding import with_rounded_kernels
from edgesam_deploy.toolkits import require

if TYPE_CHECKING:
    from edgesam_deploy.passes.program import Program

PURPOSE = "building for coreml"
EXACTLY = ("sin", "cos")  # fp16 has a step of 0.5 from 512 on, and ten radians need more than its 11 bits
WEIGHTED = ("conv", "linear", "matmul")  # before the first of them a picture is normalised: 123.675 is 123.6875 in fp16
MOST_POINTS = 16  # slots where their number varies: a bound lets Core ML plan its memory
FINE = 4  # maps of a 4th of the picture's side and finer: before the first convolution that makes them coarser
DEPLOYMENT_TARGETS = ("iOS16", "iOS17", "iOS18")


def convert(program: Program, *, deployment_target: str, half: bool, fine_half: bool = False) -> Any:
    """The program as coremltools' MLModel: inputs and outputs fp32, pictures as images, varying sizes as ranges.

    half: arithmetic and weights in fp16, but for what computes the operands of sines and cosines, what normalises a
    picture, the program's islands and, unless ``fine_half``, what works on its finest maps. The trace is lowered to
    core operators first, which is all that the frontend reads.
    """
    ct = require("coremltools", PURPOSE)
    side = None if fine_half else fine_side(program)
    if half:
        program = with_compensated_weights(with_rounded_kernels(program, side), side)
    lowered = program.aten.run_decompositions({})
    _teach_gelu(ct.converters.mil)
    kept = frozenset(lowered_names(lowered, program.islands))  # the converter names its operations after them
    return ct.convert(
        lowered,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, deployment_target),
        compute_precision=_half(ct, program, side, kept) if half else ct.precision.FLOAT32,
        pass_pipeline=_converters_passes(ct, half=half),
        inputs=[_input(ct, spec) for spec in program.inputs],
        outputs=[ct.TensorType(name=s.name, dtype=_type(s)) for s in program.outputs],
        skip_model_load=True,
    )


def _teach_gelu(mil: Any) -> None:
    """Give coremltools' frontend a translation of GELU that reads ``approximate``: torch.export writes it as a keyword,
    which its own overlooks, so that the tanh form became the exact one (2e-4 after the first GELU of EdgeSAM-DyT).
    """

    def gelu(context: Any, node: Any) -> None:
        (kind,) = (node.kwinputs or {}).get("approximate", ("none",))
        mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[kind]
        context.add(mil.Builder.gelu(x=context[node.inputs[0]], mode=mode, name=node.name))

    mil.register_torch_op(gelu, override=True)


def _input(ct: Any, spec: TensorSpec) -> Any:
    if spec.role == "image":  # a picture, which Core ML hands over as planes of 0 to 255
        return ct.ImageType(name=spec.name, shape=spec.bound({}), color_layout=ct.colorlayout.RGB)
    sizes = {name: ct.RangeDim(1, MOST_POINTS, default=DEFAULT_POINTS) for name in spec.dynamic.values()}
    return ct.TensorType(name=spec.name, shape=ct.Shape(spec.bound(sizes)), dtype=np.float32)


def _converters_passes(ct: Any, *, half: bool) -> Any:
    """coremltools' own passes. In fp32 without the one that makes a batch norm of a product and a sum: it leaves the
    operator's epsilon at 1e-5, so each takes 5e-6 off its values, which fp16 cannot see.
    """
    passes = ct.PassPipeline.DEFAULT
    if not half:
        passes.remove_passes({"common::fuse_elementwise_to_batchnorm"})
    return passes


def fine_side(program: Program) -> int | None:
    """Pixels along a map that is fine for the picture that the program takes; None where it takes none."""
    sizes = [min(spec.bound({})[-2:]) for spec in program.inputs if spec.name == "image"]
    return sizes[0] // FINE if sizes else None


def _half(ct: Any, program: Program, side: int | None, kept: frozenset[str]) -> Any:
    picture = any(spec.role == "image" for spec in program.inputs)
    fine: dict[int, Any] = {}  # found at the first call, before anything is cast; keeps what it names alive

    def selected(op: Any) -> bool:
        if side is not None and not fine:
            fine[0] = op
            fine.update({id(found): found for found in on_fine_maps(op.enclosing_block.operations, side)})
        normalises = picture and follows_none(op, WEIGHTED)
        return not (id(op) in fine or feeds(op, EXACTLY) or normalises or in_island(op, kept))

    return ct.transform.FP16ComputePrecision(op_selector=selected)


def follows_none(op: Any, kinds: tuple[str, ...]) -> bool:
    """Whether a MIL operation is of none of ``kinds`` and no way leads to it from one that is."""
    seen: set[int] = set()
    waiting = [op]
    while waiting:
        op = waiting.pop()
        if op.op_type in kinds:
            return False
        if id(op) not in seen:
            seen.add(id(op))
            read = [v for given in op.inputs.values() for v in (given if isinstance(given, (list, tuple)) else [given])]
            waiting += [value.op for value in read if value is not None and value.op is not None]
    return True


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
        mine = node.op == "call_function" and operator(node) in kinds
        if mine or any(reader.name in found for reader in node.users):
            found.add(node.name)
    return frozenset(found)


def _type(spec: TensorSpec) -> type[np.generic]:
    return np.int32 if spec.dtype == "int32" else np.float32
