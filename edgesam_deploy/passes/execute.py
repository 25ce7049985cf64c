"""Running a program in either dialect on named NumPy inputs, and comparing what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.passes.program import Program

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Arrays], list[NDArray[Any]]]


def run_program(program: Program, inputs: Arrays) -> Arrays:
    """Outputs by name. The aten dialect runs in PyTorch, the onnx dialect in ONNX Runtime on the CPU."""
    return run_on_each(program, [inputs])[0]


def run_on_each(program: Program, samples: Sequence[Arrays]) -> list[Arrays]:
    """As ``run_program`` for several inputs: loading a graph takes longer than running it."""
    if not samples:
        return []
    run = _aten_runner(program) if program.dialect == "aten" else _onnx_runner(program)
    names = [spec.name for spec in program.outputs]
    chosen = ({spec.name: inputs[spec.name] for spec in program.inputs} for inputs in samples)
    return [dict(zip(names, run(inputs), strict=True)) for inputs in chosen]


def _aten_runner(program: Program) -> Runner:
    return lambda inputs: _run_aten(program, inputs)


def _run_aten(program: Program, inputs: Arrays) -> list[NDArray[Any]]:
    import torch

    ep = program.aten
    args: list[Any] = []
    for spec in ep.graph_signature.input_specs:
        if spec.target is None:
            args.append(torch.from_numpy(inputs[spec.arg.name]))
        else:
            value = ep.state_dict.get(spec.target)
            args.append(ep.constants[spec.target] if value is None else value)
    with torch.no_grad():
        return [out.numpy() for out in ep.graph_module(*args)]


def _onnx_runner(program: Program) -> Runner:
    import onnx_ir as ir
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # PyTorch wants the cores next,
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # and the memory
    model = ir.to_proto(program.onnx).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in program.outputs]
    return lambda inputs: list(session.run(names, inputs))


def relative_l2(reference: NDArray[Any], other: NDArray[Any], floor: float = 0.0) -> float:
    """|other - reference| / |reference| in L2; infinite for another shape, 0 where both are all zero.

    ``floor``: the least root mean square that the reference counts as having. A score that happens to be 0.01 has lost
    digits to cancellation that no rewrite is to blame for.
    """
    if reference.shape != other.shape:
        return float("inf")
    a, b = reference.astype(np.float64), other.astype(np.float64)
    error, size = float(np.linalg.norm(b - a)), float(np.linalg.norm(a))
    size = max(size, floor * float(np.sqrt(a.size)))
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return error / size
