"""A function of an ML Program, ready to run: its constants loaded, every operator known, arguments checked."""

from __future__ import annotations

import time
from collections import ChainMap, Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from edgesam_deploy.errors import BundleError, EdgeSamDeployError, UnsupportedOperators, UsageError
from edgesam_deploy.targets.coreml.interpreter.features import Feature, features
from edgesam_deploy.targets.coreml.interpreter.numerics import Array, half
from edgesam_deploy.targets.coreml.interpreter.operators import MOVES, OPERATORS, parameters
from edgesam_deploy.targets.coreml.interpreter.package import model_file, read_model, weight_file
from edgesam_deploy.targets.coreml.interpreter.program import Constant, Function, Operation, read_function
from edgesam_deploy.targets.coreml.interpreter.types import FLOATS, TensorType, held
from edgesam_deploy.targets.coreml.interpreter.weights import WeightFile, open_weights

Mode = Literal["declared", "fp32"]
Watch = Callable[[Operation, float], None]
MODES: tuple[Mode, ...] = get_args(Mode)
_ATTRIBUTES = "constexpr_"  # operators with this prefix have their parameters as attributes before iOS 18


def open_mlpackage(path: Path | str, function: str | None = None, mode: Mode = "declared") -> Model:
    """The function of a package; None for its default one, which is ``main`` where there is one alone.

    Raises BundleError for a malformed package, UnknownName for a function it does not have, UnsupportedOperators
    naming all that cannot be run, MissingToolkit without coremltools.
    """
    package = Path(path)
    spec = read_model(package)
    file = model_file(package)
    weights: dict[str, WeightFile] = {}

    def blob(name: str, offset: int, kind: TensorType) -> Array:
        if name not in weights:
            weights[name] = open_weights(weight_file(file, name))
        return weights[name].read(offset, kind)

    name = function or spec.description.defaultFunctionName or "main"
    found = read_function(spec.mlProgram, name, blob, str(file))
    check_operators(found, str(file))
    return Model(found, features(spec.description, name), _constants(found, str(file)), check_mode(mode))


def check_mode(mode: str) -> Mode:
    """``mode``, known. Raises UsageError otherwise."""
    for known in MODES:
        if mode == known:
            return known
    raise UsageError(f"mode {mode!r}: must be {' or '.join(MODES)}")


def check_operators(function: Function, where: str) -> None:
    """Raise UnsupportedOperators naming every operator, and every parameter of one, that is not known here."""
    bad: Counter[str] = Counter()
    for op in function.operations:
        if op.kind == "const":
            continue
        if op.kind not in OPERATORS or op.nested:
            bad[op.kind] += 1
            continue
        known, needed = parameters(op.kind)
        given = _parameters(op)
        bad.update(f"{op.kind} with {name}" for name in sorted(given - known))
        if needed - given:
            raise BundleError(f"{where}: {op.kind} {op.name} lacks {', '.join(sorted(needed - given))}; build it again")
    if bad:
        named = ", ".join(f"{name} ({count})" for name, count in sorted(bad.items()))
        raise UnsupportedOperators(
            f"{where}: function {function.name} needs {named}, which the interpreter does not have; run it on a Mac "
            "with coremltools' MLModel.predict"
        )


def _parameters(op: Operation) -> set[str]:
    attributes = set(op.attributes) - {"name"} if op.kind.startswith(_ATTRIBUTES) else set()
    return set(op.inputs) | attributes


def _constants(function: Function, where: str) -> dict[str, Any]:
    """Values of the constants and of the compressed weights, which depend on constants alone."""
    values: dict[str, Any] = {}
    for op in function.operations:
        if op.kind == "const":
            if "val" not in op.attributes:
                raise BundleError(f"{where}: const {op.name} has no value; build it again")
            values[op.name] = _held(op.attributes["val"])
        elif op.kind.startswith(_ATTRIBUTES):
            try:
                values.update(_evaluated(op, values, "declared"))
            except EdgeSamDeployError as e:
                raise BundleError(f"{where}: {e}; edgesam-deploy verify tells if it is damaged") from e
    return values


def _held(value: Any) -> Any:
    """A stored constant as it is held: strings as they are, floats as fp32."""
    if isinstance(value, tuple):
        return tuple(_held(v) for v in value)
    if isinstance(value, np.ndarray) and value.dtype == np.float16:
        return value.astype(np.float32)
    return value


def _evaluated(op: Operation, values: Mapping[str, Any], mode: Mode) -> dict[str, Any]:
    """The outputs of one operation by name. Raises EdgeSamDeployError where its function fails, or gives another shape
    than the program declares.
    """
    arguments = {key: _argument(argument, values) for key, argument in op.inputs.items()}
    if op.kind.startswith(_ATTRIBUTES):
        arguments |= {key: _held(value) for key, value in op.attributes.items() if key != "name"}
    try:
        results = OPERATORS[op.kind](**arguments)
    except (ValueError, IndexError, TypeError, KeyError, AttributeError) as e:  # arguments that do not fit each other
        raise EdgeSamDeployError(f"{op.kind} {op.name} failed: {type(e).__name__}: {e}") from e
    results = results if isinstance(results, tuple) else (results,)
    if len(results) < len(op.outputs):
        raise EdgeSamDeployError(
            f"{op.kind} {op.name} has {len(op.outputs)} outputs; its operator gives {len(results)}"
        )
    pairs = zip(op.outputs, results, strict=False)
    return {name: _declared(op, kind, value, arguments, mode) for (name, kind), value in pairs}


def _argument(argument: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(argument, tuple):
        return tuple(_argument(a, values) for a in argument)
    return _held(argument.value) if isinstance(argument, Constant) else values[argument]


def _declared(op: Operation, kind: TensorType | None, value: Any, arguments: Mapping[str, Any], mode: Mode) -> Any:
    """``value`` in its declared type, its shape checked against the declared one."""
    if kind is None or not isinstance(value, (np.ndarray, np.generic)):
        return value
    array = np.asarray(value)
    if not _fits(array.shape, kind.shape):
        raise EdgeSamDeployError(f"{op.kind} {op.name} gave shape {array.shape}; the program declares {kind}")
    array = array.astype(held(kind.dtype), copy=False)
    if kind.dtype == "fp16" and mode == "declared" and op.kind not in MOVES:
        return half(array, in_place=not _shared(array, arguments.values()))
    return array


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    return len(shape) == len(declared) and all(d is None or d == n for n, d in zip(shape, declared, strict=True))


def _shared(array: Array, arguments: Any) -> bool:
    """Whether ``array`` may be memory of an argument, which must stay as it is."""
    return any(
        _shared(array, a) if isinstance(a, tuple) else isinstance(a, np.ndarray) and np.may_share_memory(array, a)
        for a in arguments
    )


@dataclass(frozen=True)
class Model:
    """One function of a package. ``declared`` keeps every tensor in its declared type: what is fp16 is rounded after
    each operation, whose arithmetic is fp32 (a wide accumulator). ``fp32`` takes constants as declared but does not
    round in between, which tells the rounding of weights from that of activations.
    """

    function: Function
    features: Mapping[str, Feature]
    constants: dict[str, Any]
    mode: Mode = "declared"

    @property
    def description(self) -> str:
        return f"emulated: MIL interpreter of edgesam-deploy, mode {self.mode}"

    @property
    def inputs(self) -> Mapping[str, TensorType]:
        """Types by name; a dimension that may vary is None."""
        return self.function.inputs

    @cached_property
    def outputs(self) -> Mapping[str, TensorType | None]:
        """Types by name."""
        types: dict[str, TensorType | None] = dict(self.function.inputs)
        for op in self.function.operations:
            types.update(op.outputs)
        return {name: types[name] for name in self.function.outputs}

    def operators(self) -> Counter[str]:
        """Kinds of operations but constants, and how often each occurs."""
        return self.function.operators()

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.run(inputs)

    def run(
        self, inputs: Mapping[str, Array], mode: Mode | None = None, watch: Watch | None = None
    ) -> dict[str, Array]:
        """Outputs by name, floats as fp32 or, in the mode ``declared``, as they are declared. ``watch`` is told every
        operation and the seconds that it took.

        Raises UsageError for inputs that the function does not take, EdgeSamDeployError naming the operation that
        fails.
        """
        chosen = check_mode(mode or self.mode)
        values: dict[str, Any] = self._fed(inputs, chosen)
        known = ChainMap(values, self.constants)  # what is computed, before constants
        with np.errstate(all="ignore"):  # what overflows becomes infinite, as on the device
            for op, dead in self._schedule:
                start = time.perf_counter()
                values.update(_evaluated(op, known, chosen))
                if watch is not None:
                    watch(op, time.perf_counter() - start)
                for name in dead:
                    values.pop(name, None)
        return {name: _given(known[name], kind, chosen) for name, kind in self.outputs.items()}

    def _fed(self, inputs: Mapping[str, Array], mode: Mode) -> dict[str, Array]:
        unknown, missing = set(inputs) - set(self.inputs), set(self.inputs) - set(inputs)
        if unknown or missing:
            raise UsageError(
                f"inputs {', '.join(sorted(inputs)) or 'none'}: the function {self.function.name} takes "
                f"{', '.join(self.inputs)}"
            )
        fed = {}
        for name, kind in self.inputs.items():
            array = self.features[name].fed(np.asarray(inputs[name]), kind)
            fed[name] = half(array) if kind.dtype == "fp16" and mode == "declared" else array
        return fed

    @cached_property
    def _schedule(self) -> Sequence[tuple[Operation, tuple[str, ...]]]:
        """The operations that run, each with the names that nothing reads after it."""
        seen = set(self.function.outputs)
        backwards = []
        for op in reversed(self.function.operations):
            if op.kind == "const" or op.kind.startswith(_ATTRIBUTES):
                continue
            names = {a for a in op.arguments() if isinstance(a, str)} | {name for name, _ in op.outputs}
            backwards.append((op, tuple(sorted(names - seen))))
            seen |= names
        return tuple(reversed(backwards))


def _given(value: Any, kind: TensorType | None, mode: Mode) -> Array:
    """An output of its own: not memory of the model, nor of an input."""
    stored = np.float16 if mode == "declared" and kind is not None and kind.dtype == "fp16" else None
    return np.array(value, dtype=stored if kind is None or kind.dtype in FLOATS else None, order="C")
