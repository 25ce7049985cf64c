"""Generate onnxruntime_cpu.json from the installed ONNX Runtime.

    python -m edgesam_deploy.targets.rules.probe_onnxruntime [-o FILE]

Three sources, named on each rule: the runtime's own registry of operators and CPU kernels says what has a kernel for
which types; for types without one, a model of that single node is loaded, because the runtime still runs some of them
(as the operator's function body, or in float32 between casts it inserts); what is left is stated as unsupported.

A kernel is taken as the runtime takes it (kernel_registry.cc): a kernel without an end version serves only the operator
version that it starts at, so an operator's newer version is not covered by it.
"""

from __future__ import annotations

import argparse
import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx import AttributeProto, ModelProto, TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from edgesam_deploy.errors import EdgeSamDeployError
from edgesam_deploy.targets.rules import Dtypes, Rule, RuleStatus, RuleTable, write_table

NAME = "onnxruntime_cpu"
PROVIDER = "CPUExecutionProvider"
DOMAINS = {"": "", "com.microsoft": "contrib operator, outside of the ONNX standard"}
AS_FUNCTION = "runs as its function body"
BY_CASTS = "runs in float32, between casts that ONNX Runtime inserts"
FIXED_BY = {"CastLike": "legalize_cast_like"}
OPEN_END = 2**31 - 1

Types = frozenset[str]
Constraints = dict[str, Types]  # the type parameter or the parameter's own name -> types that a kernel takes
_ELEMENT_NAMES = {"float": "float32", "double": "float64"}
_ELEMENTS = {
    _ELEMENT_NAMES.get(name.lower(), name.lower()): number for name, number in TensorProto.DataType.items()
}  # "float32" -> TensorProto.FLOAT, and so on


@dataclass(frozen=True)
class OperatorVersion:
    """One version of an operator: the runtime's schema, the opsets it is looked at for, the kernels that fit it."""

    schema: Any
    since: int
    until: int | None
    kernels: tuple[Constraints, ...]

    def by_opset(self, newest: int) -> Iterator[OperatorVersion]:
        """One for each opset where there is a function body, whose own operators change from opset to opset."""
        if not self.has_function or self.since >= newest:
            yield self
            return
        last = min(self.until or newest, newest)
        for opset in range(self.since, last + 1):
            yield replace(self, since=opset, until=self.until if opset == last else opset)

    @property
    def type_parameters(self) -> dict[str, Types]:
        """Type parameter -> every type that the operator's definition allows."""
        return {t.type_param_str: frozenset(map(_short, t.allowed_type_strs)) for t in self.schema.type_constraints}

    @property
    def has_function(self) -> bool:
        """Whether ONNX defines this version by a body of other operators."""
        schema = _onnx_schema(self.schema)
        return schema is not None and (schema.has_function or schema.has_context_dependent_function)

    @property
    def takes_graph(self) -> bool:
        """Whether it is control flow, of which no single node can be made up."""
        schema = _onnx_schema(self.schema)
        return schema is not None and any(a.type.name == "GRAPH" for a in schema.attributes.values())


def _onnx_schema(schema: Any) -> Any:
    """The same operator version in the onnx package, which says more; None where that does not know it."""
    try:
        found = onnx.defs.get_schema(schema.name, schema.since_version, schema.domain)
    except onnx.defs.SchemaError:
        return None
    return found if found.since_version == schema.since_version else None


def generate() -> RuleTable:
    """The table for the installed ONNX Runtime, sorted by domain, operator and opset."""
    newest = _newest_opset()
    rules = [
        rule
        for version in _operator_versions()
        if version.schema.domain != "" or version.schema.since_version <= newest
        for piece in version.by_opset(newest)
        for rule in _rules_of(piece)
    ]
    return RuleTable(
        name=NAME,
        runtime=f"ONNX Runtime, {PROVIDER}",
        version=onnxruntime.__version__,
        source=source(),
        generated_by="python -m edgesam_deploy.targets.rules.probe_onnxruntime",
        newest_opset={"": newest, "com.microsoft": 1},
        rules=tuple(_joined(rules)),
    )


def source() -> str:
    """What the table depends on: it is the same wherever this is."""
    return f"onnxruntime {onnxruntime.__version__} and onnx {onnx.__version__} on {platform.machine().lower()}"


def _operator_versions() -> Iterator[OperatorVersion]:
    kernels = defaultdict(list)
    for kernel in ort.get_all_opkernel_def():
        if kernel.provider == PROVIDER:
            kernels[kernel.domain, kernel.op_name].append(kernel)
    schemas = defaultdict(list)
    for schema in ort.get_all_operator_schema():
        if schema.domain in DOMAINS:
            schemas[schema.domain, schema.name].append(schema)
    for key in sorted(schemas):
        versions = sorted(schemas[key], key=lambda schema: int(schema.since_version))
        ends = [int(schema.since_version) - 1 for schema in versions[1:]]
        for schema, until in zip(versions, [*ends, None], strict=True):
            fitting = [k for k in kernels[key] if _fits(k.version_range, schema.since_version)]
            yield OperatorVersion(schema, int(schema.since_version), until, tuple(map(_constraints, fitting)))


def _fits(version_range: tuple[int, int], since: int) -> bool:
    start, end = version_range
    return start == since or (start < since <= end != OPEN_END)


def _constraints(kernel: Any) -> Constraints:
    return {name: frozenset(map(_short, types)) for name, types in kernel.type_constraints.items()}


def _short(type_string: str) -> str:
    """``tensor(float)`` -> ``float32``, ``seq(tensor(double))`` -> ``seq(float64)``."""
    head, _, inner = type_string.partition("(")
    inner = inner.removesuffix(")")
    if head == "tensor":
        return _ELEMENT_NAMES.get(inner, inner)
    return f"{head}({_short(inner)})" if inner else type_string


# ---------------------------------------------------------------------------------------------------- rules


def _rules_of(version: OperatorVersion) -> Iterator[Rule]:
    schema = version.schema
    if schema.deprecated:
        yield _rule(version, "unsupported", "withdrawn from ONNX at this opset", "operator registry")
        return
    if (schema.domain, schema.name) == ("", "Constant"):
        yield _rule(version, "supported", "becomes an initializer when the model is loaded", "ONNX Runtime's loader")
        return
    kernels = _merged(version.kernels)
    for kernel in kernels:
        yield _rule(version, "supported", DOMAINS[schema.domain], "kernel registry", kernel)
    yield from _without_kernel(version, kernels)


def _without_kernel(version: OperatorVersion, kernels: list[Constraints]) -> Iterator[Rule]:
    """What the runtime does with the types that no kernel takes."""
    if version.has_function and version.takes_graph:
        yield _rule(version, "partial", AS_FUNCTION, "operator registry")
        return
    loaded = _merged(_loaded(version, kernels))
    reason = BY_CASTS if kernels and not version.has_function else AS_FUNCTION
    for types in loaded:
        yield _rule(version, "partial", reason, "session probe", types)
    if not kernels and not loaded:
        yield _rule(version, "unsupported", "no CPU kernel in this runtime", "kernel registry")


def _rule(
    version: OperatorVersion, status: RuleStatus, reason: str, source: str, types: Constraints | None = None
) -> Rule:
    schema, types = version.schema, types or {}
    inputs = [_allowed(version, parameter, types) for parameter in schema.inputs]
    shared = {parameter.typeStr for parameter in schema.inputs}
    outputs = [None if out.typeStr in shared else _allowed(version, out, types) for out in schema.outputs]
    return Rule(
        op=schema.name,
        domain=schema.domain,
        since=version.since,
        until=version.until,
        inputs=_trimmed(inputs),
        outputs=_trimmed(outputs),
        status=status,
        reason=reason,
        source=source,
        fixed_by=FIXED_BY.get(schema.name) if status != "supported" and schema.domain == "" else None,
    )


def _allowed(version: OperatorVersion, parameter: Any, types: Constraints) -> Dtypes:
    """The types a kernel takes for one input or output; None where these are all that the operator allows."""
    taken = types.get(parameter.typeStr, types.get(parameter.name))
    if taken is None or taken >= version.type_parameters.get(parameter.typeStr, taken | {"any"}):
        return None
    return tuple(sorted(taken, key=lambda name: (_ELEMENTS.get(name, len(_ELEMENTS)), name)))


def _trimmed(positions: list[Dtypes]) -> tuple[Dtypes, ...]:
    """Without the entries at the end that repeat the one before them, since the last one stands for all that follow."""
    while positions and positions[-1] == (positions[-2] if len(positions) > 1 else None):
        positions = positions[:-1]
    return tuple(positions)


def _merged(kernels: Iterable[Constraints]) -> list[Constraints]:
    """Alternatives joined wherever they differ in one type parameter only, which says the same in fewer rules."""
    left = sorted({tuple(sorted((n, tuple(sorted(t))) for n, t in k.items())) for k in kernels})
    alternatives = [{name: frozenset(types) for name, types in kernel} for kernel in left]
    merged: list[Constraints] = []
    for kernel in alternatives:
        for index, other in enumerate(merged):
            differing = [name for name in other if kernel.get(name) != other[name]]
            if kernel.keys() == other.keys() and len(differing) == 1:
                merged[index] = {**other, differing[0]: other[differing[0]] | kernel[differing[0]]}
                break
        else:
            merged.append(kernel)
    return merged if len(merged) == len(alternatives) else _merged(merged)


def _joined(rules: list[Rule]) -> list[Rule]:
    """Versions of an operator that get the same rules become one span of opsets."""
    spans: list[list[Rule]] = []
    for rule in rules:
        if spans and (spans[-1][0].op, spans[-1][0].domain, spans[-1][0].since) == (rule.op, rule.domain, rule.since):
            spans[-1].append(rule)
        else:
            spans.append([rule])
    joined: list[list[Rule]] = []
    for span in spans:
        before = joined[-1] if joined else []
        if before and before[0].until == span[0].since - 1 and _content(before) == _content(span):
            joined[-1] = [rule.model_copy(update={"until": span[0].until}) for rule in before]
        else:
            joined.append(span)
    return [rule for span in joined for rule in span]


def _content(rules: list[Rule]) -> list[Rule]:
    return [rule.model_copy(update={"since": 1, "until": None}) for rule in rules]


# ---------------------------------------------------------------------------------------------------- single nodes


def _loaded(version: OperatorVersion, kernels: list[Constraints]) -> Iterator[Constraints]:
    """Types that no kernel takes and with which a model of this one node loads all the same.

    Where there is a kernel and no function body, that is float16 only, by inserted casts.
    """
    shown = {parameter.typeStr for parameter in version.schema.inputs}
    required = {parameter.typeStr for parameter in version.schema.inputs if parameter.option.name != "Optional"}
    types = {name: types & _ELEMENTS.keys() for name, types in version.type_parameters.items() if name in shown}
    types = {name: dtypes for name, dtypes in types.items() if dtypes}
    wanted = {"float16"} if kernels and not version.has_function else set(_ELEMENTS)
    for kernel in kernels or [{}]:
        base = {name: _preferred(kernel.get(name, dtypes) & dtypes) for name, dtypes in types.items()}
        for choice in _choices(base, {name: sorted(types[name] & wanted) for name in types}, required, bool(kernels)):
            taken = any(_takes(other, choice) for other in kernels)
            if not taken and _refusal(_single_node_model(version.schema, version.since, choice)) is None:
                # what was not changed goes on to the same kernel; what the probe's node omits is not limited
                kept = {name: kernel.get(name) for name in types if kernels or name not in required}
                yield {
                    name: kept[name] or types[name] if name in kept and dtype == base[name] else frozenset({dtype})
                    for name, dtype in choice.items()
                }


def _choices(
    base: dict[str, str], types: Mapping[str, list[str]], required: set[str], has_kernel: bool
) -> Iterator[dict[str, str]]:
    """``base``, with one parameter changed, and with every float32 changed at once as in a model of that precision.

    A change must touch the type of a ``required`` input: the probe's node omits the others, so it would prove nothing.
    Of an operator without any kernel that converts between two types (CastLike), every pair.
    """
    yield base
    changed = [{**base, name: dtype} for name, dtypes in types.items() for dtype in dtypes]
    for dtype in sorted({dtype for dtypes in types.values() for dtype in dtypes}):
        floats = {name for name, now in base.items() if now == "float32" and dtype in types[name]}
        changed.append({**base, **dict.fromkeys(floats, dtype)})
    if not has_kernel and len(types) == 2:
        changed += [dict(zip(types, pair, strict=True)) for pair in product(*types.values())]
    yield from (choice for choice in changed if any(choice[name] != base[name] for name in required & base.keys()))


def _takes(kernel: Constraints, types: Mapping[str, str]) -> bool:
    return all(dtype in kernel.get(name, {dtype}) for name, dtype in types.items())


def _preferred(types: Types) -> str:
    return "float32" if "float32" in types else min(types, key=_ELEMENTS.__getitem__)


def _refusal(model: ModelProto) -> str | None:
    """Why the runtime finds nothing to run a model with; None when it does."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # a pool of threads costs more than the session
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDER])
    except Exception as e:  # the runtime's errors share no narrower base
        # a kernel that was found and only misses an attribute is a kernel all the same
        return None if "Exception during initialization" in str(e) else str(e)
    return None


def _single_node_model(schema: Any, opset: int, types: Mapping[str, str]) -> ModelProto:
    required = [p for p in schema.inputs if p.option.name != "Optional"]
    inputs = [_value(f"input_{i}", parameter, types) for i, parameter in enumerate(required)]
    names = iter(value.name for value in inputs)
    outputs = [onnx.ValueInfoProto(name="output")]  # of whatever type the operator gives
    node = onnx.NodeProto(op_type=schema.name, domain=schema.domain, output=["output"])
    node.input.extend("" if p.option.name == "Optional" else next(names) for p in schema.inputs)
    while node.input and not node.input[-1]:
        node.input.pop()
    node.attribute.extend(_required_attributes(schema))
    graph = helper.make_graph([node], "probe", inputs, outputs)
    opsets = [helper.make_opsetid(schema.domain, opset)] + ([helper.make_opsetid("", 20)] if schema.domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _value(name: str, parameter: Any, types: Mapping[str, str]) -> onnx.ValueInfoProto:
    """A graph input or output of unknown rank."""
    dtype = types.get(parameter.typeStr) or _short(parameter.typeStr)
    return helper.make_tensor_value_info(name, _ELEMENTS.get(dtype, TensorProto.UNDEFINED), None)


def _required_attributes(schema: Any) -> Iterator[AttributeProto]:
    samples = {"INT": 1, "INTS": [1, 1], "FLOAT": 1.0, "FLOATS": [1.0], "STRING": "", "STRINGS": [""]}
    known = _onnx_schema(schema)
    for name, attribute in known.attributes.items() if known is not None else ():
        if attribute.required and attribute.type.name in samples:
            yield helper.make_attribute(name, samples[attribute.type.name])


def _newest_opset() -> int:
    """The newest opset that a model may have: the runtime's registry is ahead of what its loader accepts."""
    schemas = [schema for schema in ort.get_all_operator_schema() if schema.domain == ""]
    relu = next(schema for schema in schemas if schema.name == "Relu")
    for opset in range(max(int(schema.since_version) for schema in schemas), 0, -1):
        model = _single_node_model(relu, opset, {"T": "float32"})
        if _refusal(model) is None:
            return opset
    raise EdgeSamDeployError(f"onnxruntime {onnxruntime.__version__} loads no model here: {_refusal(model)}")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the operator table of the installed ONNX Runtime (CPU).")
    default = Path(__file__).with_name(f"{NAME}.json")
    parser.add_argument("-o", "--output", type=Path, default=default, help="default: the table in this package")
    output = parser.parse_args(arguments).output
    print(write_table(generate(), output))


if __name__ == "__main__":
    main()
