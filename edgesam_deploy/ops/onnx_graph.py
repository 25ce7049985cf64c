"""Reads an ONNX file as rules see it: every node with the types, ranks and small constants of what it reads and writes.

Counted is what a runtime meets: the nodes of the graph and of every If, Loop and Scan body in it, and model-local
functions inlined at each call.
"""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, numpy_helper

from edgesam_deploy.errors import UsageError
from edgesam_deploy.onnx_file import read_graph
from edgesam_deploy.targets.rules import Tensor, Use

log = logging.getLogger(__name__)

WEIGHT_BYTES = 4096  # a larger constant is a weight; a smaller one may be a shape, which inference reads
LIST_LENGTH = 16  # a longer constant is no list of axes, repeats or bounds


@dataclass(frozen=True)
class Graph:
    """The uses in one file, in the operators of ``vocabulary``. ``opsets``: version by domain, where there are any.

    starts: the indices at which another function of the file begins.
    """

    vocabulary: str
    opsets: Mapping[str, int]
    uses: tuple[Use, ...]
    starts: tuple[int, ...] = (0,)


def read_onnx(path: Path) -> Graph:
    """Every node of an .onnx file. Raises UsageError for one that is missing, truncated or not ONNX."""
    model = read_graph(path)
    opsets = _opsets(model.opset_import)
    model = with_types(path, without_weights(model))
    return Graph("onnx", opsets, tuple(_Reader.of(model).graph(model.graph, {})))


def with_types(path: Path, model: ModelProto) -> ModelProto:
    """The model with its functions inlined and its types filled in. Raises UsageError for what is no valid model."""
    try:
        return _inferred(_inlined(model))
    except (onnx.checker.ValidationError, RuntimeError) as e:
        raise UsageError(f"{path} is not a valid ONNX model: {e}") from e


def without_weights(model: ModelProto) -> ModelProto:
    """The model itself without the bytes of its weights: every step after this copies it."""
    constants = (a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute)
    for tensor in (*model.graph.initializer, *constants):
        if tensor.ByteSize() > WEIGHT_BYTES:
            for content in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(content)
    return model


def _inlined(model: ModelProto) -> ModelProto:
    """Calls of model-local functions replaced by what they do, as runtimes do before anything else."""
    if not model.functions:
        return model
    import onnx.inliner

    return onnx.inliner.inline_local_functions(model)


def _inferred(model: ModelProto) -> ModelProto:
    """Types and shapes filled in where they can be inferred."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as e:  # a graph that inference rejects is reported all the same, with fewer types known
        log.debug("shape inference failed: %s", e)
        return model


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {_domain(entry.domain): entry.version for entry in imports}


# ---------------------------------------------------------------------------------------------------- nodes

Scope = MutableMapping[str, Tensor]  # what is known of the values that a node can see


@dataclass(frozen=True)
class _Reader:
    """Reads nodes as rules see them. ``functions``: those that inlining left, because their opsets differ."""

    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str], FunctionProto]

    @classmethod
    def of(cls, model: ModelProto) -> _Reader:
        functions = {(_domain(function.domain), function.name): function for function in model.functions}
        return cls(_opsets(model.opset_import), functions)

    def graph(self, graph: GraphProto, outer: Scope) -> Iterator[Use]:
        """The nodes of a graph and of the graphs inside of them; ``outer`` is what it sees of its surroundings."""
        own: dict[str, Tensor] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            own[value.name] = _tensor(value.type)
        for weight in graph.initializer:
            own[weight.name] = _constant(weight)
        for sparse in graph.sparse_initializer:
            own[sparse.values.name] = Tensor(_dtype(sparse.values.data_type), tuple(sparse.dims), constant=True)
        yield from self._nodes(graph.node, ChainMap(own, outer), Patterns.of(graph.node))

    def _nodes(self, nodes: Iterable[NodeProto], scope: Scope, patterns: Patterns) -> Iterator[Use]:
        for node in nodes:
            domain = _domain(node.domain)
            function = self.functions.get((domain, node.op_type))
            if function is not None:
                yield from self._body(function)
                continue
            if (domain, node.op_type) == ("", "Constant"):
                scope[node.output[0]] = _of_constant(node, scope.get(node.output[0], Tensor()))
            yield self._use(node, domain, scope, patterns)
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs) if attribute.type in _GRAPHS else ():
                    yield from self.graph(graph, scope)

    def _body(self, function: FunctionProto) -> Iterator[Use]:
        """A call that was not inlined: counted like one, its types unknown."""
        rest = {key: other for key, other in self.functions.items() if other is not function}  # ends any recursion
        reader = _Reader({**self.opsets, **_opsets(function.opset_import)}, rest)
        yield from reader._nodes(function.node, {}, Patterns.of(function.node))

    def _use(self, node: NodeProto, domain: str, scope: Scope, patterns: Patterns) -> Use:
        opset = self.opsets.get(domain, 1)
        given = {a.name: _plain(a) for a in node.attribute if a.type in _PLAIN}
        return Use(
            op=node.op_type,
            domain=domain,
            opset=opset,
            name=node_name(node),
            inputs=tuple(scope.get(name, Tensor()) if name else None for name in node.input),
            outputs=tuple(scope.get(name, Tensor()) if name else None for name in node.output),
            attributes={**_defaults(node.op_type, domain, opset), **given},
            pattern=patterns.around(node),
        )


def node_name(node: NodeProto) -> str:
    """A node's own name; without one, that of its first result."""
    return node.name or next(filter(None, node.output), str(node.op_type))


@dataclass(frozen=True)
class Patterns:
    """What nodes are parts of. ``producers``: the node behind each value; ``readers``: the nodes that read it."""

    producers: Mapping[str, NodeProto]
    readers: Mapping[str, list[NodeProto]]

    @classmethod
    def of(cls, nodes: Iterable[NodeProto]) -> Patterns:
        if not any(node.op_type == "Erf" for node in nodes):
            return cls({}, {})
        producers = {name: node for node in nodes for name in node.output}
        readers: dict[str, list[NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        return cls(producers, readers)

    def around(self, node: NodeProto) -> str:
        """``Gelu`` for the Erf in x (1 + erf(x / sqrt(2))), in the order of operations that exporters write."""
        if node.op_type != "Erf":
            return ""
        scaled = self.producers.get(node.input[0])
        added = self._only_reader(node)
        times = added and self._only_reader(added)
        found = (found.op_type if found is not None else "" for found in (scaled, added, times))
        return "Gelu" if tuple(found) in _GELUS else ""

    def _only_reader(self, node: NodeProto) -> NodeProto | None:
        readers = self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 else None


_GELUS = {("Div", "Add", "Mul"), ("Mul", "Add", "Mul")}


_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_SCALARS = (AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.STRING)
_PLAIN = (*_SCALARS, AttributeProto.INTS, AttributeProto.FLOATS)
Plain = int | float | str | tuple[int | float, ...]


def _plain(attribute: AttributeProto) -> Plain:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, int | float) else tuple(value)


def _constant(tensor: TensorProto) -> Tensor:
    """A constant, with its elements where it may be a list of axes, repeats or bounds; a longer vector of one and the
    same number, as the zero points of a weight are, has that one.
    """
    shape = tuple(tensor.dims)
    known = Tensor(_dtype(tensor.data_type), shape, constant=True)
    if len(shape) > 1 or tensor.data_type == TensorProto.STRING:
        return known
    if tensor.data_location == TensorProto.EXTERNAL:
        return known  # beside the file, and not read
    if shape and shape[0] > LIST_LENGTH and not _is_stored(tensor):
        return known
    values = numpy_helper.to_array(tensor).reshape(-1).tolist()
    if len(values) > LIST_LENGTH:
        return replace(known, values=(values[0],)) if len(set(values)) == 1 else known
    return replace(known, values=tuple(values)) if len(values) == (shape[0] if shape else 1) else known


def _is_stored(tensor: TensorProto) -> bool:
    """Whether the elements are there: a report on a model that is not built has weights of no content."""
    return any(values for field, values in tensor.ListFields() if field.name.endswith("_data"))


def _of_constant(node: NodeProto, inferred: Tensor) -> Tensor:
    """What a Constant gives, in each of the forms that it may be written in."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return _constant(attribute.t)
        if attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
            value = _plain(attribute)
            values = value if isinstance(value, tuple) else (value,)
            return replace(inferred, constant=True, values=values)  # type: ignore[arg-type]  # no text among these
    return replace(inferred, constant=True)


@cache
def _defaults(op: str, domain: str, opset: int) -> Mapping[str, Plain]:
    """The values that attributes have where a node leaves them out."""
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    defaults = ((name, attribute.default_value) for name, attribute in schema.attributes.items())
    return {name: _plain(default) for name, default in defaults if default.type in _SCALARS}


def _tensor(kind: TypeProto) -> Tensor:
    if kind.WhichOneof("value") == "tensor_type" and kind.tensor_type.HasField("shape"):
        dims = kind.tensor_type.shape.dim
        return Tensor(_type_name(kind), tuple(d.dim_value if d.HasField("dim_value") else None for d in dims))
    return Tensor(_type_name(kind))


def _type_name(kind: TypeProto) -> str | None:
    """``float32``, ``seq(int64)``, ``optional(float16)``; None where the model does not say."""
    which: str | None = kind.WhichOneof("value")
    if which == "tensor_type":
        return _dtype(kind.tensor_type.elem_type)
    if which == "sequence_type":
        return f"seq({_type_name(kind.sequence_type.elem_type)})"
    if which == "optional_type":
        return f"optional({_type_name(kind.optional_type.elem_type)})"
    return which.removesuffix("_type") if which else None


def _dtype(number: int) -> str | None:
    if number == TensorProto.UNDEFINED:
        return None
    name: str = TensorProto.DataType.Name(number).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
