"""What an .onnx file shows without its weights: interface, opsets, operators, metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import AttributeProto, GraphProto, NodeProto, ValueInfoProto, helper

from edgesam_deploy.onnx_file import read_graph

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Facts:
    """Inputs that the caller feeds and outputs, by name; a string in a shape is a dynamic dimension.

    operators: how often each occurs, subgraphs and functions included, other domains as ``domain::name``; resizes: the
    modes of Resize; producer: what wrote the file, by its own account; metadata: its properties.
    """

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    opset: int
    operators: Mapping[str, int]
    resizes: tuple[str, ...]
    producer: str
    metadata: Mapping[str, str]

    def count(self, *operators: str) -> int:
        """How often any of the operators occurs."""
        return sum(self.operators.get(name, 0) for name in operators)

    @property
    def nodes(self) -> int:
        return sum(self.operators.values())

    @property
    def foreign(self) -> list[str]:
        """Operators outside of ONNX's own domain."""
        return sorted(name for name in self.operators if "::" in name)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; the metadata's own texts are left out."""
        return {
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "outputs": {name: list(shape) for name, shape in self.outputs.items()},
            "opset": self.opset,
            "operators": dict(sorted(self.operators.items())),
            "producer": self.producer,
            "metadata": sorted(self.metadata),
        }


def read_facts(path: Path) -> Facts:
    """The facts of a file. Raises UsageError for one that is missing, truncated or no ONNX."""
    model = read_graph(path)
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    nodes = [*_nodes(graph), *(node for function in model.functions for node in function.node)]
    own = {function.name for function in model.functions}
    operators = Counter(_name(node) for node in nodes if node.op_type not in own)
    return Facts(
        inputs={value.name: _shape(value) for value in graph.input if value.name not in stored},
        outputs={value.name: _shape(value) for value in graph.output},
        opset=max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        operators=operators,
        resizes=tuple(_mode(node) for node in nodes if node.op_type in ("Resize", "Upsample")),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _name(node: NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _mode(node: NodeProto) -> str:
    value = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "mode"), b"nearest")
    return value.decode() if isinstance(value, bytes) else str(value)


def _shape(value: ValueInfoProto) -> Shape:
    kind = value.type
    if not kind.HasField("tensor_type"):
        return ()
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.tensor_type.shape.dim)
