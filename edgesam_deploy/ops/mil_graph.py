"""Reads a .mlpackage as rules see it: every operation of every function, with the types and shapes of its tensors.

Constants are no operations here, and neither is what expands compressed weights: both belong to loading. Flags, axes
and names, which MIL gives as constants, play the part of attributes and are left out of the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgesam_deploy.errors import BundleError, UsageError
from edgesam_deploy.ops.onnx_graph import Graph
from edgesam_deploy.targets.coreml.interpreter.package import read_model
from edgesam_deploy.targets.coreml.interpreter.program import Constant, Function, Operation, read_function
from edgesam_deploy.targets.coreml.interpreter.types import TensorType
from edgesam_deploy.targets.rules import Tensor, Use

VOCABULARY = "mil"
TYPES = {"fp16": "float16", "fp32": "float32", "fp64": "float64", "bf16": "bfloat16"}  # others have one name everywhere
FIRST = ("cond", "x", "values", "weight")  # come before the other parameters, in this order, as rules count inputs
WEIGHTS = frozenset({"float16", "float32"})  # constants of these are operands


def read_mlpackage(path: Path) -> Graph:
    """Every operation of an ML Program, its weights unread. Raises UsageError for a folder that is none, MissingToolkit
    without coremltools.
    """
    try:
        model = read_model(path)
        names = sorted(model.mlProgram.functions)
        functions = [read_function(model.mlProgram, name, _unread, str(path)) for name in names]
    except BundleError as e:
        raise UsageError(f"{path}: {e}") from e
    several = len(functions) > 1
    uses: list[Use] = []
    starts = []
    for function in functions:
        starts.append(len(uses))
        uses += _uses(function, f"{function.name}/" if several else "")
    return Graph(VOCABULARY, {VOCABULARY: int(model.specificationVersion)}, tuple(uses), tuple(starts))


def _unread(file: str, offset: int, kind: TensorType) -> TensorType:
    """Stands for the bytes of a weight."""
    return kind


def is_loaded(kind: str) -> bool:
    """Whether an operation is done when the model is loaded: a constant, or the expansion of a compressed weight."""
    return kind == "const" or kind.startswith("constexpr_")


def _uses(function: Function, prefix: str) -> Iterator[Use]:
    known: dict[str, Tensor | None] = {name: _tensor(kind) for name, kind in function.inputs.items()}
    for op in function.operations:
        loaded = is_loaded(op.kind)
        outputs = tuple(_tensor(kind, constant=loaded) for _, kind in op.outputs)
        known |= {name: tensor for (name, _), tensor in zip(op.outputs, outputs, strict=True)}
        if not loaded:
            yield Use(op.kind, VOCABULARY, 1, prefix + op.name, tuple(_inputs(op, known)), outputs)


def _inputs(op: Operation, known: Mapping[str, Tensor | None]) -> Iterator[Tensor | None]:
    for parameter in sorted(op.inputs, key=_position):
        argument = op.inputs[parameter]
        for entry in argument if isinstance(argument, tuple) else (argument,):
            tensor = None if isinstance(entry, Constant) else known[entry]
            if tensor is not None and (not tensor.constant or tensor.dtype in WEIGHTS):
                yield tensor


def _position(parameter: str) -> tuple[int, str]:
    return (FIRST.index(parameter) if parameter in FIRST else len(FIRST)), parameter


def _tensor(kind: Any, *, constant: bool = False) -> Tensor:
    if kind is None:
        return Tensor(constant=constant)
    return Tensor(TYPES.get(kind.dtype, kind.dtype), kind.shape, constant)
