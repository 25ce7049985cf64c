from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from edgesam_deploy.errors import PassError, UsageError
from edgesam_deploy.passes.engine import Pass, exact
from edgesam_deploy.passes.onnx.graph import (
    add_initializer,
    add_node,
    constant,
    has_graphs,
    is_standard,
    opset,
    rank,
    replace_value,
)  # fmt: skip
from edgesam_deploy.passes.program import Program

OLDEST, NEWEST = 11, 23
IR_VERSIONS = {11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
SMALL = 1024  # elements: a larger constant is a weight, which no conversion looks into
REDUCTIONS = {"ReduceSum": 13} | dict.fromkeys(
    ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
     "ReduceSumSquare"), 18,
)  # fmt: skip
# one and the same signature meant something else before the opset given: no form that a comparison of signatures sees
REDEFINED = {"RoiAlign": 16, "Dropout": 12, "GridSample": 20, "GroupNormalization": 21}


def set_opset(version: int) -> Pass:
    """The pass that writes a program in another version of ONNX's operator set, 11 to 23.

    Raises UsageError for another version; the pass raises PassError naming an operator that has no form in it.
    """
    if not OLDEST <= version <= NEWEST:
        raise UsageError(f"opset {version}: must be {OLDEST} to {NEWEST}")

    def convert(program: Program) -> int:
        """Write the program in another opset: up by ONNX's own converter, down by rules of our own.

            Gelu (20) ── LayerNormalization (17)        Div ── Erf ── ... ── ReduceMean ── Sub ── ... (11)

        Why: NPU compilers read opset 11 to 13, and ONNX's converter goes below 14 for not so much as an Add. An
        operator that is the same in both keeps its form, one that changed is rewritten, and one that neither has nor
        gets a form is named. Exact. Site = a node that changed, or 1 for the number alone.
        """
        now = opset(program)
        if now == version:
            return 0
        if program.onnx.functions:
            common.InlinePass()(program.onnx)
        return _raise(program, version) if now < version else _lower(program, now, version)

    convert.__name__ = "set_opset"
    return exact(convert)


# --- up ---


def _raise(program: Program, version: int) -> int:
    """By onnx.version_converter, on a copy whose weights are inputs: it copies them often, and ends at 2 GiB."""
    model, now = program.onnx, opset(program)
    if now < 9 and "Scan" in program.operators():
        raise PassError(f"{program.name}: Scan had one axis more before opset 9, which onnx's converter overlooks")
    constants = model.graph.initializers
    weights = {n: v for n, v in constants.items() if v.const_value is not None and v.const_value.size > SMALL}
    light = model.clone()
    for name in weights:
        value = light.graph.initializers.pop(name)
        value.const_value = None
        if value not in light.graph.inputs:
            light.graph.inputs.append(value)
    for node in light.graph:
        _point_at_last_axis(node)
    proto = ir.to_proto(light)
    proto.ir_version = max(proto.ir_version, 4)  # so that initialisers need not be inputs
    try:
        converted = ir.from_proto(onnx.version_converter.convert_version(proto, version))
    except RuntimeError as e:  # ConvertError and ONNX's own assertions
        reason = re.sub(r"^.*Assertion `.*` failed: ", "", str(e).strip().splitlines()[0])
        raise PassError(f"onnx's converter cannot take {program.name} from opset {now} to {version}: {reason}") from e
    graph = converted.graph
    given = {v.name for v in model.graph.inputs}
    for value in [v for v in graph.inputs if v.name in weights]:
        value.const_value = weights[str(value.name)].const_value
        if value.name not in given:
            graph.inputs.remove(value)
        graph.register_initializer(value)
    converted.ir_version = max(model.ir_version, IR_VERSIONS[version])
    before = [(n.op_type, len(n.inputs), sorted(n.attributes)) for n in model.graph]
    after = [(n.op_type, len(n.inputs), sorted(n.attributes)) for n in graph]
    program.body = converted
    return max(sum(a != b for a, b in zip(before, after, strict=False)), abs(len(after) - len(before)), 1)


def _point_at_last_axis(node: ir.Node) -> None:
    """Softmax of opset 11 over its last axis, said so that the converter sees that nothing needs to be flattened."""
    axis, dims = node.attributes.get("axis"), rank(node.inputs[0]) if node.inputs else None
    if is_standard(node, "Softmax", "LogSoftmax", "Hardmax") and axis is not None and axis.as_int() + 1 == dims:
        node.attributes["axis"] = ir.AttrInt64("axis", -1)


# --- down ---


def _lower(program: Program, now: int, version: int) -> int:
    model = program.onnx
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    sites = 0
    for node in list(model.graph):
        sites += _lower_node(node, now, version)
    for key in ("", "ai.onnx"):
        if key in model.opset_imports:
            model.opset_imports[key] = version
    model.ir_version = min(model.ir_version, IR_VERSIONS[version])
    common.RemoveUnusedNodesPass()(model)
    return max(sites, 1)


def _lower_node(node: ir.Node, now: int, version: int) -> bool:
    """Rewrite one node; of those inside If, Loop and Scan, only check that they need not be."""
    if not is_standard(node):
        return False
    if has_graphs(node):
        if _since(node, now) != _since(node, version) and (reason := _misfit(node, now, version)):
            raise PassError(f"{node.op_type} {node.name}: {reason}")
        for attribute in node.attributes.values():
            for nested in [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []:
                for inner in nested:
                    if _since(inner, now) != _since(inner, version) and (reason := _misfit(inner, now, version)):
                        raise PassError(f"{inner.op_type} inside of {node.op_type} {node.name}: {reason}")
        return False
    if _since(node, now) == _since(node, version):
        return False
    before, graph = node.op_type, node.graph
    changed = before in _DOWN and _DOWN[before](node, version)
    if node.graph is None:
        return changed  # it was replaced by others
    if reason := _misfit(node, now, version):
        raise PassError(f"{before} {node.name}: {reason}")
    assert graph is not None
    return changed


VALUES = {  # of attributes that came later than their operators
    ("Pad", "mode", "wrap"): 19, ("Resize", "coordinate_transformation_mode", "half_pixel_symmetric"): 19,
    ("ScatterElements", "reduction", "max"): 18, ("ScatterElements", "reduction", "min"): 18,
    ("ScatterND", "reduction", "max"): 18, ("ScatterND", "reduction", "min"): 18,
}  # fmt: skip


def _since(node: ir.Node, version: int) -> int | None:
    try:
        return int(onnx.defs.get_schema(node.op_type, version, "").since_version)
    except onnx.defs.SchemaError:
        return None


def _misfit(node: ir.Node, now: int, version: int) -> str | None:
    """Why the older operator cannot say what this node says; None where it can."""
    since = _since(node, version)
    if since is None:
        return f"opset {version} has no such operator; the lowest opset for this graph is {_since(node, now)}"
    if REDEFINED.get(node.op_type, 0) > version:
        return f"it meant something else before opset {REDEFINED[node.op_type]}"
    schema = onnx.defs.get_schema(node.op_type, version, "")
    extra = sorted(set(node.attributes) - set(schema.attributes))
    if extra:
        return f"opset {version} has no attribute {extra[0]} of it"
    for name, attribute in node.attributes.items():
        value = attribute.as_string() if attribute.type == ir.AttributeType.STRING else ""
        if VALUES.get((node.op_type, name, value), 0) > version:
            return f"opset {version} has no {name} {value} of it"
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        return f"opset {version} takes {schema.min_input} to {schema.max_input} inputs, not {len(node.inputs)}"
    if not schema.min_output <= len(node.outputs) <= schema.max_output:
        return f"opset {version} gives {schema.min_output} to {schema.max_output} results, not {len(node.outputs)}"
    required = [formal for formal in schema.inputs if formal.option == onnx.defs.OpSchema.FormalParameterOption.Single]
    missing = [formal.name for formal, v in zip(required, node.inputs, strict=False) if v is None]
    if missing:
        return f"opset {version} needs its input {missing[0]}"
    return _wrong_type(node, schema, version)


def _wrong_type(node: ir.Node, schema: onnx.defs.OpSchema, version: int) -> str | None:
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            if value is None or value.type is None:
                continue
            wanted = formal[min(index, len(formal) - 1)].type_str
            name = _type_name(value.type)
            if name not in allowed.get(wanted, {wanted}):
                return f"opset {version} does not take {name} there"
    return None


def _type_name(kind: ir.TypeProtocol) -> str:
    """As ONNX's schemas write it: seq(tensor(float))."""
    if isinstance(kind, ir.SequenceType):
        return f"seq({_type_name(kind.elem_type)})"
    if isinstance(kind, ir.OptionalType):
        return f"optional({_type_name(kind.elem_type)})"
    return f"tensor({onnx.helper.tensor_dtype_to_string(int(kind.dtype)).removeprefix('TensorProto.').lower()})"


def _drop_defaults(**defaults: object) -> Callable[[ir.Node, int], bool]:
    """Attributes that the older operator does not have, where they say what that one does."""

    def drop(node: ir.Node, version: int) -> bool:
        said = [name for name, default in defaults.items() if name in node.attributes
                and node.attributes[name].value == default]  # fmt: skip
        for name in said:
            node.attributes.pop(name)
        return bool(said)

    return drop


def _before(first: int, rule: Callable[[ir.Node, int], bool]) -> Callable[[ir.Node, int], bool]:
    """A rule for opsets below ``first``."""
    return lambda node, version: version < first and rule(node, version)


def _input_to_attribute(index: int, name: str) -> Callable[[ir.Node, int], bool]:
    """Integers that were an attribute once."""

    def move(node: ir.Node, version: int) -> bool:
        if index >= len(node.inputs):
            return False
        value = node.inputs[index]
        array = constant(value)
        if value is not None and array is None:
            raise PassError(f"{node.op_type} {node.name}: opset {version} has {name} as attribute, here it is computed")
        if array is not None:
            node.attributes[name] = ir.AttrInt64s(name, array.reshape(-1).tolist())
        node.resize_inputs(index)
        return True

    return move


def _reduction(node: ir.Node, version: int) -> bool:
    if version >= REDUCTIONS[node.op_type]:
        return False
    noop = node.attributes.pop("noop_with_empty_axes", None)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    axes = constant(given)
    if given is None or (axes is not None and not axes.size):
        if noop is not None and noop.as_int():
            return _replaced(node, _emit(node, "Identity", [node.inputs[0]]))
        node.resize_inputs(1)
        return True
    return _input_to_attribute(1, "axes")(node, version)


def _softmax(node: ir.Node, version: int) -> bool:
    """Below 13 the operator flattens everything from ``axis`` on: only the last axis is the same."""
    attribute, dims = node.attributes.get("axis"), rank(node.inputs[0])
    axis = -1 if attribute is None else attribute.as_int()
    if dims is None:
        raise PassError(f"{node.op_type} {node.name}: opset {version} needs its input's rank, which is unknown")
    axis %= dims
    if axis == dims - 1:
        node.attributes["axis"] = ir.AttrInt64("axis", axis)
        return True
    order = [i for i in range(dims) if i != axis] + [axis]
    back = [order.index(i) for i in range(dims)]
    moved = _emit(node, "Transpose", [node.inputs[0]], {"perm": order})
    soft = _emit(node, node.op_type, [moved], {"axis": dims - 1})
    return _replaced(node, _emit(node, "Transpose", [soft], {"perm": back}))


def _gelu(node: ir.Node, version: int) -> bool:
    x, attribute = node.inputs[0], node.attributes.get("approximate")
    half, one = _number(node, 0.5), _number(node, 1.0)
    if attribute is not None and attribute.as_string() == "tanh":
        cube = _emit(node, "Mul", [_emit(node, "Mul", [_emit(node, "Mul", [x, x]), x]), _number(node, 0.044715)])
        inside = _emit(node, "Mul", [_emit(node, "Add", [x, cube]), _number(node, math.sqrt(2 / math.pi))])
        function = _emit(node, "Tanh", [inside])
    else:
        function = _emit(node, "Erf", [_emit(node, "Mul", [x, _number(node, math.sqrt(0.5))])])
    return _replaced(node, _emit(node, "Mul", [_emit(node, "Mul", [x, half]), _emit(node, "Add", [function, one])]))


def _layer_norm(node: ir.Node, version: int) -> bool:
    """(x - mean) / sqrt(variance + eps), scale, bias; the mean and the deviation may not be asked for."""
    x, dims = node.inputs[0], rank(node.inputs[0])
    if dims is None or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise PassError(f"LayerNormalization {node.name}: its rank is unknown, or its mean or deviation is read")
    axis, eps = (node.attributes.get(k) for k in ("axis", "epsilon"))
    axes = {"axes": list(range((-1 if axis is None else axis.as_int()) % dims, dims))}
    centred = _emit(node, "Sub", [x, _emit(node, "ReduceMean", [x], axes)])
    variance = _emit(node, "ReduceMean", [_emit(node, "Mul", [centred, centred])], axes)
    number = _number(node, 1e-5 if eps is None else eps.as_float())
    y = _emit(node, "Div", [centred, _emit(node, "Sqrt", [_emit(node, "Add", [variance, number])])])
    for op_type, operand in zip(("Mul", "Add"), node.inputs[1:], strict=False):
        y = y if operand is None else _emit(node, op_type, [y, operand])
    return _replaced(node, y)


def _not(op_type: str) -> Callable[[ir.Node, int], bool]:
    """a >= b as not a < b; the same but for NaN, where neither says anything useful."""
    return lambda node, _: _replaced(node, _emit(node, "Not", [_emit(node, op_type, list(node.inputs))]))


def _hard_swish(node: ir.Node, version: int) -> bool:
    gate = _emit(node, "HardSigmoid", [node.inputs[0]], {"alpha": 1 / 6, "beta": 0.5})
    return _replaced(node, _emit(node, "Mul", [node.inputs[0], gate]))


def _mish(node: ir.Node, version: int) -> bool:
    soft = _emit(node, "Tanh", [_emit(node, "Softplus", [node.inputs[0]])])
    return _replaced(node, _emit(node, "Mul", [node.inputs[0], soft]))


def _resize(node: ir.Node, version: int) -> bool:
    """Version 11 wants every input there, an empty one where it has no meaning."""
    changed, graph = _drop_defaults(antialias=0, keep_aspect_ratio_policy="stretch")(node, version), node.graph
    assert isinstance(graph, ir.Graph)
    for index, value in enumerate(node.inputs if version < 13 else ()):
        if value is None:
            empty = add_initializer(graph, f"{node.outputs[0].name}_none", np.zeros(0, np.float32))
            node.replace_input_with(index, empty)
    return changed or version < 13


def _split(node: ir.Node, version: int) -> bool:
    """num_outputs goes; sizes that are not given are equal, which older versions do by themselves."""
    attribute, source = node.attributes.pop("num_outputs", None), node.inputs[0]
    assert source is not None
    if attribute is not None:
        axis = node.attributes.get("axis")
        size = None if source.shape is None else source.shape[0 if axis is None else axis.as_int()]
        if not isinstance(size, int) or size % attribute.as_int():
            raise PassError(f"Split {node.name}: opset {version} has no parts of different sizes that are not given")
    return _before(13, _input_to_attribute(1, "split"))(node, version) or attribute is not None


def _number(node: ir.Node, value: float) -> ir.Value:
    graph, source = node.graph, node.inputs[0]
    assert isinstance(graph, ir.Graph)
    assert source is not None
    if source.dtype is None:
        raise PassError(f"{node.op_type} {node.name}: the type of its input is unknown; infer shapes first")
    return add_initializer(graph, f"{node.outputs[0].name}_constant", np.array(value, source.dtype.numpy()))


def _emit(
    node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, object] | None = None
) -> ir.Value:
    assert node.inputs[0] is not None
    dtype = ir.DataType.BOOL if op_type in ("Less", "Greater", "Not") else node.inputs[0].dtype
    return add_node(node, op_type, inputs, attributes, dtype=dtype)


def _replaced(node: ir.Node, value: ir.Value) -> bool:
    result, graph = node.outputs[0], node.graph
    value.shape, value.type = result.shape, result.type
    replace_value(result, value)
    assert graph is not None
    graph.remove(node, safe=True)
    return True


_DOWN: dict[str, Callable[[ir.Node, int], bool]] = {
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _before(13, _input_to_attribute(1, "axes"))),
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
    "GreaterOrEqual": _before(12, _not("Less")),
    "LessOrEqual": _before(12, _not("Greater")),
    "HardSwish": _hard_swish,
    "Mish": _mish,
    "Split": _split,
    "Reshape": _drop_defaults(allowzero=0),
    "Cast": _drop_defaults(saturate=1, round_mode="up"),
    "CastLike": _drop_defaults(saturate=1),
    "Shape": _drop_defaults(start=0),
    "BatchNormalization": _drop_defaults(training_mode=0),
    "AveragePool": _drop_defaults(dilations=(1, 1)),
    "Resize": _resize,
    "ScatterND": _drop_defaults(reduction="none"),
    "ScatterElements": _drop_defaults(reduction="none"),
    "QuantizeLinear": _drop_defaults(saturate=1, block_size=0, precision=0, output_dtype=0),
    "DequantizeLinear": _drop_defaults(block_size=0, output_dtype=0),
}  # fmt: skip
