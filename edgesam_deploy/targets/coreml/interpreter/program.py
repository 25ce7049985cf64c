"""An ML Program as plain data: functions of operations whose inputs are names or constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgesam_deploy.errors import BundleError, UnknownName
from edgesam_deploy.targets.coreml.interpreter.types import NAMES, TensorType, held, storage
from edgesam_deploy.targets.coreml.interpreter.weights import unpacked

ReadBlob = Callable[[str, int, TensorType], Any]


@dataclass(frozen=True)
class Constant:
    """A value written in place of a name."""

    value: Any


@dataclass(frozen=True)
class Operation:
    """One operation. ``inputs``: parameter to a name or Constant, or to a tuple of them; ``attributes``: constants."""

    kind: str
    inputs: Mapping[str, Any]
    attributes: Mapping[str, Any]
    outputs: tuple[tuple[str, TensorType | None], ...]
    nested: bool = False  # it has blocks of its own: control flow

    @property
    def name(self) -> str:
        return self.outputs[0][0] if self.outputs else self.kind

    def arguments(self) -> Iterator[Any]:
        """Every name and Constant it reads."""
        for argument in self.inputs.values():
            yield from argument if isinstance(argument, tuple) else (argument,)


@dataclass(frozen=True)
class Function:
    """``opset``: the MIL version, such as CoreML7 for iOS 17."""

    name: str
    opset: str
    inputs: Mapping[str, TensorType]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]

    def operators(self) -> Counter[str]:
        """Kinds of operations but constants, and how often each occurs."""
        return Counter(op.kind for op in self.operations if op.kind != "const")


def read_function(program: Any, name: str, blob: ReadBlob, where: str) -> Function:
    """The function ``name`` of a protobuf Program. ``blob``: (file, offset, type) -> array.

    Raises UnknownName for a function that is not there, BundleError for a malformed one; ``where`` is for messages.
    """
    if name not in program.functions:
        raise UnknownName("function", name, program.functions)
    function = program.functions[name]
    if function.opset not in function.block_specializations:
        raise BundleError(f"{where}: function {name} has no body for its opset {function.opset!r}; build it again")
    block = function.block_specializations[function.opset]
    reader = _Reader(blob, f"{where}: function {name}")
    inputs = {entry.name: reader.required_type(entry) for entry in function.inputs}
    operations = tuple(reader.operation(op) for op in block.operations)
    found = Function(name, function.opset, inputs, tuple(block.outputs), operations)
    _check_names(found, reader.where)
    return found


def _check_names(function: Function, where: str) -> None:
    """Raise BundleError unless every name is defined once, before it is read."""
    known = set(function.inputs)
    for op in function.operations:
        for argument in op.arguments():
            if isinstance(argument, str) and argument not in known:
                raise BundleError(f"{where}: {op.kind} {op.name} reads {argument!r}, which nothing before it defines")
        for name, _ in op.outputs:
            if name in known:
                raise BundleError(f"{where}: {name!r} is defined twice")
            known.add(name)
    missing = [name for name in function.outputs if name not in known]
    if missing or not function.outputs:
        raise BundleError(f"{where}: no output, or outputs that nothing defines ({', '.join(missing)})")


@dataclass(frozen=True)
class _Reader:
    blob: ReadBlob
    where: str

    def operation(self, op: Any) -> Operation:
        return Operation(
            op.type,
            {key: self.argument(op.inputs[key], op.type) for key in sorted(op.inputs)},
            {key: self.value(op.attributes[key], f"{op.type}.{key}") for key in sorted(op.attributes)},
            tuple((entry.name, self.type_of(entry)) for entry in op.outputs),
            bool(op.blocks),
        )

    def argument(self, argument: Any, kind: str) -> Any:
        """A name or Constant; several of them, which MIL has for tuples (concat's values), as a tuple."""
        found = tuple(
            binding.name if binding.WhichOneof("binding") == "name" else Constant(self.value(binding.value, kind))
            for binding in argument.arguments
        )
        return found[0] if len(found) == 1 else found

    def required_type(self, entry: Any) -> TensorType:
        found = self.type_of(entry)
        if found is None:
            raise BundleError(f"{self.where}: input {entry.name} is a {entry.type.WhichOneof('type')}, not a tensor")
        return found

    def type_of(self, entry: Any) -> TensorType | None:
        """None for what is no tensor: a list, a tuple, a state."""
        return self.tensor(entry.type.tensorType) if entry.type.WhichOneof("type") == "tensorType" else None

    def tensor(self, tensor: Any) -> TensorType:
        if tensor.dataType not in NAMES:
            raise BundleError(f"{self.where}: element type {tensor.dataType} is not known here")
        sizes = (d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
        return TensorType(NAMES[tensor.dataType], tuple(None if d is None else int(d) for d in sizes))

    def value(self, value: Any, what: str) -> Any:
        """A constant: an array as the file stores it, a string, or a tuple of them."""
        source = value.WhichOneof("value")
        try:
            if source == "blobFileValue":
                kind = self.tensor(value.type.tensorType)
                return self.blob(value.blobFileValue.fileName, value.blobFileValue.offset, kind)
            if source == "immediateValue":
                return self.immediate(value.immediateValue, value.type, what)
        except (ValueError, KeyError, TypeError) as e:  # sizes and types that do not fit each other
            raise BundleError(f"{self.where}: the constant of {what} is malformed ({e}); build it again") from e
        raise BundleError(f"{self.where}: the constant of {what} has no value; build it again")

    def immediate(self, value: Any, kind: Any, what: str) -> Any:
        form = value.WhichOneof("value")
        if form in ("tuple", "list"):
            return tuple(self.value(entry, what) for entry in getattr(value, form).values)
        if form != "tensor":
            raise ValueError(f"a {form}")
        return _from_tensor(value.tensor, self.tensor(kind.tensorType))


def _from_tensor(tensor: Any, kind: TensorType) -> Any:
    """A TensorValue: fp16 and integers below 32 bits are stored as bytes, the others in a list of their own."""
    form = tensor.WhichOneof("value")
    values: Any = getattr(tensor, form).values if form else []
    if kind.dtype == "string":
        return values[0] if kind.shape == () else tuple(values)
    if form == "bytes":
        return unpacked(np.frombuffer(values, np.uint8), kind)
    found = np.asarray(list(values), storage(kind.dtype) if kind.dtype in ("fp32", "fp16") else held(kind.dtype))
    if found.size == 1 and kind.count != 1:  # a splat
        return np.full(kind.fixed_shape, found[0])
    return found.reshape(kind.fixed_shape)
