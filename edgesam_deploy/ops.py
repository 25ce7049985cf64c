"""The operator-support report: what in an ONNX graph the targets' runtimes run, offline, from their rule tables.

    report(path, ["onnx"])      any .onnx file, its weights unread; one row per operator, target and verdict
    bundle_report(bundle)       the same for every part of a bundle: the content of its ops.json

Counted is what a runtime meets: the nodes of the graph and of every If, Loop and Scan body in it, and model-local
functions inlined at each call.
"""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from edgesam_deploy.errors import UsageError
from edgesam_deploy.onnx_file import read_graph
from edgesam_deploy.targets import target_class
from edgesam_deploy.targets.rules import SEVERITY, RuleTable, Status, Tensor, Use, Verdict, load_table

if TYPE_CHECKING:
    from rich.console import Console


log = logging.getLogger(__name__)

SCHEMA = 1
# what a tracer leaves behind of shapes and indices it did not know, and which static graphs do without
DEBRIS = frozenset({"Shape", "Gather", "OneHot", "Tile", "If", "Loop", "NonZero", "Where", "Expand"})
WEIGHT_BYTES = 4096  # a larger constant is a weight; a smaller one may be a shape, which inference reads
FailOn = Literal["unsupported", "partial"]
_FAILING: dict[FailOn, tuple[Status, ...]] = {
    "unsupported": ("unsupported", "unknown"),
    "partial": ("unsupported", "unknown", "partial"),
}
_COLOURS: dict[Status, str] = {"supported": "green", "partial": "yellow", "unknown": "magenta", "unsupported": "red"}


@dataclass(frozen=True)
class OpsRow:
    """Nodes of one operator with one verdict. ``dtypes`` and ``ranks`` are of all their inputs and outputs.

    source, version: where the rule comes from and which runtime version it speaks of. fixed_by: the pass after which
    the cause is gone. nodes: names in the graph's order; an unnamed node goes by its first output.
    """

    target: str
    operator: str
    domain: str
    count: int
    dtypes: tuple[str, ...]
    ranks: tuple[int, ...]
    status: Status
    reason: str
    source: str
    version: str
    fixed_by: str | None
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class OpsReport:
    """The report on one file: rows by target as asked, worst status first, then by operator."""

    file: str
    opsets: Mapping[str, int]
    targets: tuple[str, ...]
    rows: tuple[OpsRow, ...]

    @property
    def worst(self) -> Status:
        """The worst status of any row; ``supported`` for a graph without nodes."""
        return max((row.status for row in self.rows), key=SEVERITY.index, default="supported")

    def failures(self, fail_on: FailOn = "unsupported") -> tuple[OpsRow, ...]:
        """The rows that a gate at ``fail_on`` rejects; what is unknown counts as unsupported."""
        return tuple(row for row in self.rows if row.status in _FAILING[fail_on])

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data, the same for the same file whatever folder it lies in."""
        return {"schema": SCHEMA, "worst": self.worst, "totals": self.totals(), **asdict(self)}

    def totals(self) -> dict[str, dict[Status, int]]:
        """Number of nodes by target and status."""
        return {
            target: {s: sum(r.count for r in self.rows if (r.target, r.status) == (target, s)) for s in SEVERITY}
            for target in self.targets
        }


def report(model_path: Path, targets: Sequence[str]) -> OpsReport:
    """Judge every node of an .onnx file by the rules of each target.

    Raises UnknownName for a target, UsageError for a file that is missing, truncated or not ONNX.
    """
    names = tuple(dict.fromkeys(targets))
    if not names:
        raise UsageError("no target to report on; name one or more with --target")
    tables = {name: load_table(target_class(name).rules) for name in names}
    model = read_graph(Path(model_path))
    opsets = _opsets(model.opset_import)
    try:
        model = _with_types(_inlined(_without_weights(model)))
    except (onnx.checker.ValidationError, RuntimeError) as e:
        raise UsageError(f"{model_path} is not a valid ONNX model: {e}") from e
    uses = list(_Reader.of(model).graph(model.graph, {}))
    rows = [row for name, table in tables.items() for row in _rows(name, table, uses)]
    return OpsReport(Path(model_path).name, opsets, names, tuple(rows))


def parts_report(target: str, files: Mapping[str, Path]) -> dict[str, Any]:
    """The content of a bundle's ops.json: the target's report on each part that is an ONNX file, by part name."""
    reports = {name: report(file, [target]) for name, file in sorted(files.items()) if file.suffix == ".onnx"}
    return {"schema": SCHEMA, "target": target, "parts": {name: found.to_json() for name, found in reports.items()}}


def debris(report: OpsReport) -> list[str]:
    """``operator name`` of each node that a static graph should not hold, in standard ONNX."""
    found = (f"{row.operator} {node}" for row in report.rows if _is_debris(row) for node in row.nodes)
    return sorted(set(found))  # a set: every target has a row for the same nodes


def _is_debris(row: OpsRow) -> bool:
    return row.domain == "" and row.operator in DEBRIS


def _rows(target: str, table: RuleTable, uses: Sequence[Use]) -> list[OpsRow]:
    groups: dict[tuple[str, str, Verdict], list[Use]] = {}
    for use in uses:
        groups.setdefault((use.domain, use.op, table.judge(use)), []).append(use)
    rows = [_row(target, table, verdict, same) for (_, _, verdict), same in groups.items()]
    return sorted(rows, key=lambda row: (-SEVERITY.index(row.status), row.domain, row.operator, row.reason))


def _row(target: str, table: RuleTable, verdict: Verdict, uses: Sequence[Use]) -> OpsRow:
    tensors = {tensor for use in uses for tensor in (*use.inputs, *use.outputs) if tensor is not None}
    return OpsRow(
        target=target,
        operator=uses[0].op,
        domain=uses[0].domain,
        count=len(uses),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors if tensor.dtype is not None})),
        ranks=tuple(sorted({len(tensor.shape) for tensor in tensors if tensor.shape is not None})),
        status=verdict.status,
        reason=verdict.reason,
        source=verdict.source,
        version=f"{table.runtime} {table.version}",
        fixed_by=verdict.fixed_by,
        nodes=tuple(use.name for use in uses),
    )


# ---------------------------------------------------------------------------------------------------- reading


def _without_weights(model: ModelProto) -> ModelProto:
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


def _with_types(model: ModelProto) -> ModelProto:
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
            own[weight.name] = Tensor(_dtype(weight.data_type), tuple(weight.dims), constant=True)
        for sparse in graph.sparse_initializer:
            own[sparse.values.name] = Tensor(_dtype(sparse.values.data_type), tuple(sparse.dims), constant=True)
        yield from self._nodes(graph.node, ChainMap(own, outer))

    def _nodes(self, nodes: Iterable[NodeProto], scope: Scope) -> Iterator[Use]:
        for node in nodes:
            domain = _domain(node.domain)
            function = self.functions.get((domain, node.op_type))
            if function is not None:
                yield from self._body(function)
                continue
            if (domain, node.op_type) == ("", "Constant"):
                scope[node.output[0]] = replace(scope.get(node.output[0], Tensor()), constant=True)
            yield self._use(node, domain, scope)
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs) if attribute.type in _GRAPHS else ():
                    yield from self.graph(graph, scope)

    def _body(self, function: FunctionProto) -> Iterator[Use]:
        """A call that was not inlined: counted like one, its types unknown."""
        rest = {key: other for key, other in self.functions.items() if other is not function}  # ends any recursion
        reader = _Reader({**self.opsets, **_opsets(function.opset_import)}, rest)
        yield from reader._nodes(function.node, {})

    def _use(self, node: NodeProto, domain: str, scope: Scope) -> Use:
        opset = self.opsets.get(domain, 1)
        given = {a.name: _scalar(a) for a in node.attribute if a.type in _SCALARS}
        return Use(
            op=node.op_type,
            domain=domain,
            opset=opset,
            name=node.name or next(filter(None, node.output), node.op_type),
            inputs=tuple(scope.get(name, Tensor()) if name else None for name in node.input),
            outputs=tuple(scope.get(name, Tensor()) if name else None for name in node.output),
            attributes={**_defaults(node.op_type, domain, opset), **given},
        )


_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_SCALARS = (AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.STRING)


def _scalar(attribute: AttributeProto) -> int | float | str:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


@cache
def _defaults(op: str, domain: str, opset: int) -> Mapping[str, int | float | str]:
    """The values that attributes have where a node leaves them out."""
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    defaults = ((name, attribute.default_value) for name, attribute in schema.attributes.items())
    return {name: _scalar(default) for name, default in defaults if default.type in _SCALARS}


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


# ---------------------------------------------------------------------------------------------------- showing


def render(report: OpsReport, console: Console) -> None:
    """Print the report: what does not simply run, with its remedy, above what does; then the totals by target."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(f"operators of {report.file}"), title_justify="left")
    for column in ("target", "operator", "count", "status", "types", "ranks", "reason", "fixed by", "nodes"):
        table.add_column(column, justify="right" if column == "count" else "left", overflow="fold")
    for row in report.rows:
        cells = (
            row.target,
            f"{row.domain}::{row.operator}" if row.domain else row.operator,
            str(row.count),
            Text(row.status, _COLOURS[row.status]),
            " ".join(row.dtypes),
            " ".join(map(str, row.ranks)),
            row.reason,
            row.fixed_by or "",
            "" if row.status == "supported" else _few(row.nodes),
        )
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))  # names are no markup
    console.print(table)
    for target, totals in report.totals().items():
        version = next((row.version for row in report.rows if row.target == target), "no operators")
        found = ", ".join(f"{count} {status}" for status, count in totals.items() if count)
        console.print(Text(f"{target}: {found or 'nothing to run'}  ({version})"))


def _few(names: tuple[str, ...], most: int = 3) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
