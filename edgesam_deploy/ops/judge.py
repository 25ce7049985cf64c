"""From a file and the names of targets to the report: one row per operator, target and verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from edgesam_deploy.errors import UsageError
from edgesam_deploy.ops.onnx_graph import Graph
from edgesam_deploy.ops.placement import Placement, placed
from edgesam_deploy.targets.rules import SEVERITY, RuleTable, Status, Use, Verdict, report_names, report_table

SCHEMA = 1
ALL = "all"
# what a tracer leaves behind of shapes and indices it did not know, and which static graphs do without
DEBRIS = frozenset({"Shape", "Gather", "OneHot", "Tile", "If", "Loop", "NonZero", "Where", "Expand"})
FailOn = Literal["unsupported", "partial"]
_FAILING: dict[FailOn, tuple[Status, ...]] = {
    "unsupported": ("unsupported", "unknown"),
    "partial": ("unsupported", "unknown", "partial"),
}
READERS: Mapping[str, str] = {  # by the end of a file's name
    ".onnx": "edgesam_deploy.ops.onnx_graph:read_onnx",
    ".tflite": "edgesam_deploy.ops.tflite_graph:read_tflite",
    ".mlpackage": "edgesam_deploy.ops.mil_graph:read_mlpackage",
}


@dataclass(frozen=True)
class OpsRow:
    """Nodes of one operator with one verdict. ``dtypes`` and ``ranks`` are of all their inputs and outputs.

    source, version: where the rule comes from and which runtime version it speaks of. fixed_by: the pass after which
    the cause is gone, or several. nodes: names in the graph's order; an unnamed node goes by its first output.
    lowers_to: what the operator becomes in the runtime's own vocabulary, where the rule says so.
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
    lowers_to: str = ""


@dataclass(frozen=True)
class OpsReport:
    """The report on one file: rows by target as asked, worst status first, then by operator.

    placements: where a file of its own kind would run, for each target whose rules speak of one processor of several.
    """

    file: str
    opsets: Mapping[str, int]
    targets: tuple[str, ...]
    rows: tuple[OpsRow, ...]
    placements: tuple[Placement, ...] = ()

    @property
    def worst(self) -> Status:
        """The worst status of any row; ``supported`` for a graph without nodes."""
        return max((row.status for row in self.rows), key=SEVERITY.index, default="supported")

    def failures(self, fail_on: FailOn = "unsupported") -> tuple[OpsRow, ...]:
        """The rows that a gate at ``fail_on`` rejects; what is unknown counts as unsupported."""
        return tuple(row for row in self.rows if row.status in _FAILING[fail_on])

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data, the same for the same file whatever folder it lies in."""
        found = {"schema": SCHEMA, "worst": self.worst, "totals": self.totals(), **asdict(self)}
        return found if self.placements else {key: value for key, value in found.items() if key != "placements"}

    def totals(self) -> dict[str, dict[Status, int]]:
        """Number of nodes by target and status."""
        return {
            target: {s: sum(r.count for r in self.rows if (r.target, r.status) == (target, s)) for s in SEVERITY}
            for target in self.targets
        }


def report(
    model_path: Path, targets: Sequence[str], *, title: str = "", rules: Mapping[str, str] | None = None
) -> OpsReport:
    """Judge every node of a file by the rules of each target; ``all`` stands for every one that speaks its vocabulary.

    title: how the report calls the file, instead of by its name. rules: another table for a target than its own.
    Raises UnknownName for a target, UsageError for a file that is missing, truncated, or of a kind that has no reader.
    """
    path = Path(model_path)
    names = tuple(dict.fromkeys(targets))
    if not names:
        raise UsageError("no target to report on; name one or more with --target")
    tables = {name: report_table((rules or {}).get(name, name)) for name in names if name != ALL}
    graph = read(path)
    if ALL in names:
        every = {name: report_table(name) for name in report_names()}
        tables |= {name: table for name, table in every.items() if table.speaks(graph.vocabulary)}
    for name, table in tables.items():
        if not table.speaks(graph.vocabulary):
            spoken = " and ".join(filter(None, (table.vocabulary, table.native)))
            raise UsageError(f"{path}: {name} judges {spoken} operators, the file holds {graph.vocabulary}")
    verdicts = {name: [table.judge(use) for use in graph.uses] for name, table in tables.items()}
    rows = [row for name, table in tables.items() for row in _rows(name, table, graph.uses, verdicts[name])]
    placements = [
        placed(name, table, graph, verdicts[name])
        for name, table in tables.items()
        if table.unit and table.native == graph.vocabulary
    ]
    return OpsReport(title or path.name, graph.opsets, tuple(tables), tuple(rows), tuple(placements))


def read(path: Path) -> Graph:
    """The uses of operators in a file, by the reader for its suffix; a file without a known one is read as ONNX."""
    module, _, function = READERS.get(path.suffix, READERS[".onnx"]).partition(":")
    reader: Callable[[Path], Graph] = getattr(import_module(module), function)
    return reader(path)


def parts_report(target: str, files: Mapping[str, Path], *, rules: str | None = None) -> dict[str, Any]:
    """The content of a bundle's ops.json: the target's report on each part whose kind can be read, by part name.

    Parts that share a file have one report, under their names joined by " + ". rules: the table that judges them, where
    that is another than the one of the target's name (a profile's).
    """
    table = None if rules is None else {target: rules}
    known = {name: file for name, file in sorted(files.items()) if file.suffix in READERS}
    sharing = {file: [name for name, other in known.items() if other == file] for file in known.values()}
    reports = {" + ".join(names): report(file, [target], rules=table) for file, names in sharing.items()}
    return {"schema": SCHEMA, "target": target, "parts": {name: found.to_json() for name, found in reports.items()}}


def debris(report: OpsReport) -> list[str]:
    """``operator name`` of each node that a static graph should not hold, in standard ONNX."""
    found = (f"{row.operator} {node}" for row in report.rows if _is_debris(row) for node in row.nodes)
    return sorted(set(found))  # a set: every target has a row for the same nodes


def _is_debris(row: OpsRow) -> bool:
    return row.domain == "" and row.operator in DEBRIS


def _rows(target: str, table: RuleTable, uses: Sequence[Use], verdicts: Sequence[Verdict]) -> list[OpsRow]:
    groups: dict[tuple[str, str, Verdict], list[Use]] = {}
    for use, verdict in zip(uses, verdicts, strict=True):
        groups.setdefault((use.domain, use.op, verdict), []).append(use)
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
        lowers_to=verdict.lowers_to,
    )
