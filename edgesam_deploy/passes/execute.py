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
    """In channels-last order, which PyTorch's depthwise convolutions are ten times faster in on a CPU."""
    import torch

    ep = program.aten
    constants = {name: channels_last(value) for name, value in {**ep.constants, **ep.state_dict}.items()}
    specs = ep.graph_signature.input_specs

    def run(inputs: Arrays) -> list[NDArray[Any]]:
        args = [torch.from_numpy(inputs[s.arg.name]) if s.target is None else constants[s.target] for s in specs]
        with torch.no_grad():
            return [out.contiguous().numpy() for out in ep.graph_module(*args)]

    return run


def channels_last(value: Any) -> Any:
    """A convolution's kernel in channels-last order, anything else as it is; without gradients."""
    import torch

    is_kernel = isinstance(value, torch.Tensor) and value.dim() == 4 and value.is_floating_point()
    return value.detach().contiguous(memory_format=torch.channels_last) if is_kernel else value


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
