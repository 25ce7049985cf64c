"""Small programs to try passes on, and the claims that every pass must stand up to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgesam_deploy.capture import trace
from edgesam_deploy.contract import Dtype, Role, TensorSpec
from edgesam_deploy.passes.engine import Engine, Pass
from edgesam_deploy.passes.program import Program

Shape = tuple[int | str, ...]
_DTYPES: dict[int, Dtype] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.FLOAT16: "float16",  # type: ignore[dict-item]  # of files of others
}


class Calls(nn.Module):
    """A module of ``children`` that computes ``function(self, x, ...)``."""

    def __init__(self, function: Callable[..., Any], **children: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            if isinstance(child, Tensor) and not isinstance(child, nn.Parameter):
                self.register_buffer(name, child)
            else:
                setattr(self, name, child)

    def forward(self, x: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> Any:
        return self.function(self, *(value for value in (x, y, z) if value is not None))


def traced(module: nn.Module, *shapes: Shape, outputs: int = 1, roles: dict[str, Role] | None = None) -> Program:
    """``module`` as an aten program with inputs x, y, z of ``shapes`` (a string is a dynamic dimension)."""
    roles = roles or {}
    if not isinstance(module, Calls):
        module = Calls(lambda s, x: s.net(x), net=module)  # the inputs of nn.Sequential are named otherwise
    inputs = tuple(
        TensorSpec(name, shape, role=roles.get(name, "normal")) for name, shape in zip("xyz", shapes, strict=False)
    )
    return trace("part", module, inputs, tuple(TensorSpec(f"out{i}", ()) for i in range(outputs)))


def parsed(text: str, opset: int = 20, *, infer: bool = True) -> Program:
    """A model in ONNX's text format, without the header, as an onnx program; its specs are read from the graph."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{text}')
    if infer:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        onnx.checker.check_model(model)
    return wrapped(model)


def wrapped(model: onnx.ModelProto) -> Program:
    """An onnx model as a program."""
    return Program("part", _specs(model.graph.input), _specs(model.graph.output), ir.from_proto(model))


def _specs(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            value.name,
            tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
            _DTYPES[value.type.tensor_type.elem_type],
        )
        for value in values
    )


def rewritten(program: Program, rewrite: Pass, sites: int) -> Program:
    """The program after ``rewrite``, which must rewrite ``sites`` places, keep its bound on both inputs, leave the
    program it was given alone, and find nothing the second time. With no sites: the very same program.
    """
    before = program.operators()
    engine = Engine("fast")
    after = engine.run(program, (rewrite,))
    (step,) = engine.steps
    assert (step.name, step.sites) == (rewrite.name, sites), f"{step}"
    assert program.operators() == before
    if sites == 0:
        assert after is program
        return after
    assert step.error is not None
    assert step.error <= rewrite.bound
    assert engine.run(after, (rewrite,)) is after, f"{rewrite.name} is not idempotent: {engine.steps[-1]}"
    return after


def counts(program: Program) -> dict[str, int]:
    return dict(program.operators())


def node_named(program: Program, op_type: str) -> ir.Node:
    """The only node of its type."""
    (node,) = (n for n in program.onnx.graph if n.op_type == op_type)
    return node


def initializer(program: Program, name: str) -> np.ndarray[Any, Any]:
    tensor = program.onnx.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def randomise(module: nn.Module, seed: int = 0, spread: float = 1.0) -> nn.Module:
    """Weights and statistics that no rewrite can get right by luck: nothing is 0 or 1, variances differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.dtype.is_floating_point:
                continue
            drawn = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                drawn = drawn.abs() + 0.1
            elif name.endswith("running_mean"):
                drawn = spread * drawn
            value.copy_(drawn)
    return module
