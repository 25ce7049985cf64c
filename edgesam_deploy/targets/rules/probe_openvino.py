"""Generate openvino.json from the installed OpenVINO: python -m edgesam_deploy.targets.rules.probe_openvino [-o FILE]

A model of each operator alone is read. Of an operator that it does not know OpenVINO says that it has no conversion
rule; any other complaint about such a model is about what it lacks. Types are OpenVINO's own choice: it converts what
its kernels do not have.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from edgesam_deploy.targets.openvino_runner import openvino_core
from edgesam_deploy.targets.rules import Rule, RuleTable, write_table
from edgesam_deploy.toolkits import require

NAME = "openvino"
OPSET = 23  # the newest that this project writes
UNKNOWN = "No conversion rule found for operations"
SAMPLES: dict[str, Any] = {"INT": 1, "INTS": [1, 1], "FLOAT": 1.0, "FLOATS": [1.0], "STRING": "", "STRINGS": [""]}


def generate() -> RuleTable:
    """The table for the installed OpenVINO, by operator."""
    ov = require("openvino", "probing OpenVINO")
    core = openvino_core()
    known = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == "" and s.since_version <= OPSET}
    schemas = [onnx.defs.get_schema(name, OPSET, "") for name in sorted(known)]
    rules = [_rule(core, schema) for schema in schemas if not schema.deprecated]  # of what was withdrawn, nothing
    return RuleTable(
        name=NAME,
        runtime="OpenVINO, ONNX frontend",
        version=ov.__version__.split("-")[0],
        source=source(),
        generated_by="python -m edgesam_deploy.targets.rules.probe_openvino",
        newest_opset={"": OPSET},
        rules=tuple(rules),
    )


def source() -> str:
    """What the table depends on."""
    return f"openvino {require('openvino', 'probing').__version__.split('-')[0]} and onnx {onnx.__version__}"


def _rule(core: Any, schema: Any) -> Rule:
    try:
        core.read_model(_alone(schema).SerializeToString())
    except Exception as e:  # its error types derive from Exception alone
        if UNKNOWN in str(e):
            return Rule(op=schema.name, status="unsupported", reason="unknown to its reader", source="read_model probe")
    return Rule(op=schema.name, status="supported", source="read_model probe")


def _alone(schema: Any) -> onnx.ModelProto:
    """A model of one node with its required inputs and attributes."""
    required = [p for p in schema.inputs if p.option.name != "Optional"]
    inputs = [helper.make_tensor_value_info(f"x{i}", _type(schema, p), [1, 2, 4, 4]) for i, p in enumerate(required)]
    names = iter(value.name for value in inputs)
    node = helper.make_node(
        schema.name, [next(names) if p.option.name != "Optional" else "" for p in schema.inputs], ["y"], name="probed"
    )
    node.attribute.extend(_attributes(schema))
    while node.input and not node.input[-1]:
        node.input.pop()
    graph = helper.make_graph([node], "probe", inputs, [onnx.ValueInfoProto(name="y")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=11)


def _type(schema: Any, parameter: Any) -> int:
    allowed = next((t.allowed_type_strs for t in schema.type_constraints if t.type_param_str == parameter.type_str), ())
    wanted = "tensor(float)" if "tensor(float)" in allowed or not allowed else allowed[0]
    name = wanted.removeprefix("tensor(").removesuffix(")").upper()
    return int(getattr(TensorProto, name, TensorProto.FLOAT))


def _attributes(schema: Any) -> Iterator[onnx.AttributeProto]:
    for name, attribute in schema.attributes.items():
        if attribute.required and attribute.type.name in SAMPLES:
            yield helper.make_attribute(name, SAMPLES[attribute.type.name])


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the operator table of the installed OpenVINO.")
    default = Path(__file__).with_name(f"{NAME}.json")
    parser.add_argument("-o", "--output", type=Path, default=default, help="default: the table in this package")
    output = parser.parse_args(arguments).output
    print(write_table(generate(), output))


if __name__ == "__main__":
    main()
