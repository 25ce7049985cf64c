"""Cuts nodes out of an ONNX file, each as a model of its own: what to send to the maker of a compiler."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper

from edgesam_deploy.errors import OutputError, UsageError
from edgesam_deploy.onnx_file import read_graph
from edgesam_deploy.ops.judge import OpsReport, OpsRow
from edgesam_deploy.ops.onnx_graph import node_name, with_types, without_weights

GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
CONTENT = (
    "raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data",
)  # fmt: skip


@dataclass(frozen=True)
class Surroundings:
    """What a node can see: types of values, and constants with their content."""

    types: MutableMapping[str, TypeProto]
    constants: MutableMapping[str, TensorProto]


@dataclass(frozen=True)
class Saved:
    """The files written, and the nodes that could not be: the model does not say the types of what they read."""

    files: tuple[Path, ...]
    left_out: tuple[str, ...]


def save_subgraphs(path: Path, rows: Iterable[OpsRow], folder: Path) -> Saved:
    """Write every node that ``rows`` name as a valid model of its own into ``folder``.

    Its constants are in it, its other operands are inputs of the types and shapes that they have in the file. Raises
    UsageError for a file without such nodes, OutputError for a folder that cannot be written.
    """
    wanted = {name for row in rows for name in row.nodes}
    model = read_graph(path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as e:
        raise UsageError(f"{path}: its weights cannot be read: {e}") from e
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    bare = ModelProto()
    bare.CopyFrom(model)
    typed = with_types(path, without_weights(bare))
    files, left_out = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for node, around in _nodes(typed.graph, Surroundings({}, {}), constants):
            if node_name(node) in wanted:
                cut = _cut(node, around, typed)
                if cut is None:
                    left_out.append(node_name(node))
                    continue
                files.append(_free(folder, node))
                onnx.save(cut, files[-1])
    except OSError as e:
        raise OutputError(f"cannot write into {folder}: {e.strerror}") from e
    return Saved(tuple(files), tuple(left_out))


def failing_rows(reports: Iterable[OpsReport]) -> list[OpsRow]:
    """The rows of what does not run, or is not known to."""
    return [row for report in reports for row in report.failures("unsupported")]


def _free(folder: Path, node: NodeProto) -> Path:
    """A file name that says which node it is, and is not taken."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{node.op_type}_{node_name(node)}").strip("_")[:100]
    found, count = folder / f"{stem}.onnx", 1
    while found.exists():
        count += 1
        found = folder / f"{stem}_{count}.onnx"
    return found


def _nodes(
    graph: GraphProto, outer: Surroundings, content: Mapping[str, TensorProto]
) -> Iterator[tuple[NodeProto, Surroundings]]:
    """Every node with what it sees, those in bodies included. ``content``: weights that ``graph`` has lost."""
    own_types = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
    own_constants = {tensor.name: content.get(tensor.name, tensor) for tensor in graph.initializer}
    around = Surroundings(ChainMap(own_types, outer.types), ChainMap(own_constants, outer.constants))
    for node in graph.node:
        yield node, around
        if node.op_type == "Constant" and not node.domain:
            for attribute in node.attribute:
                if attribute.name == "value" and _has_content(attribute.t):
                    around.constants[node.output[0]] = attribute.t
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.type in GRAPHS else ():
                yield from _nodes(body, around, {})


def _reads(node: NodeProto) -> list[str]:
    """The values a node reads, those that its bodies take from around it included, each once."""
    names = [*node.input]
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs) if attribute.type in GRAPHS else ():
            own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
            for inner in body.node:
                names += [name for name in _reads(inner) if name not in own]
                own.update(inner.output)
            names += [value.name for value in body.output if value.name not in own]
    return [name for name in dict.fromkeys(names) if name]


def _cut(node: NodeProto, around: Surroundings, model: ModelProto) -> ModelProto | None:
    """The node as a model; None where a type is missing."""
    inputs, weights = [], []
    for name in _reads(node):
        constant = around.constants.get(name)
        kind = around.types.get(name)
        if constant is not None and _has_content(constant):
            weight = TensorProto()
            weight.CopyFrom(constant)
            weight.name = name
            weights.append(weight)
        elif constant is not None:
            inputs.append(helper.make_tensor_value_info(name, constant.data_type, list(constant.dims)))
        elif kind is not None and _is_typed(kind):
            inputs.append(_value(name, kind))
        else:
            return None
    outputs = [_value(name, around.types.get(name)) for name in node.output if name]
    if any(not _is_typed(value.type) for value in outputs):
        return None
    graph = helper.make_graph([node], f"{node.op_type} alone", inputs, outputs, weights)
    graph.node[0].name = node_name(node)
    return helper.make_model(
        graph, opset_imports=list(model.opset_import), ir_version=model.ir_version, functions=list(model.functions)
    )


def _value(name: str, kind: TypeProto | None) -> ValueInfoProto:
    value = ValueInfoProto(name=name)
    if kind is not None:
        value.type.CopyFrom(kind)
    return value


def _is_typed(kind: TypeProto) -> bool:
    which = kind.WhichOneof("value")
    return which is not None and (which != "tensor_type" or kind.tensor_type.elem_type != TensorProto.UNDEFINED)


def _has_content(tensor: TensorProto) -> bool:
    """Whether the elements are there; without_weights takes those of large tensors."""
    return not all(tensor.dims) or any(len(getattr(tensor, field)) for field in CONTENT)
