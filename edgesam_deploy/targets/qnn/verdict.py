"""The compiler's verdict on a part, as rows: which nodes run where, in how many partitions, and why some do not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx

from edgesam_deploy.targets.qnn.compiler import Compilation, End, Limits, Settings, compile_onnx
from edgesam_deploy.targets.qnn.schematic import Traffic
from edgesam_deploy.targets.qnn.suspect import find_suspect

Processor = Literal["npu", "cpu", "none"]
_FAILED = re.compile(r"Validation FAILED for \d+ nodes in OrtNodeUnit \(\w+\) :\n(.*?)\n\s*\n", re.DOTALL)
_NODE = re.compile(r"Operator type: \w+ Node name: (.*?) Node index: \d+")
_REASON = re.compile(r"REASON : (.*)", re.DOTALL)
_ERROR = re.compile(r"failed for node `([^`]*)` of type `(\w+)` with error code (\d+)")
TRAFFIC = "compile-time estimate, from the compiler's schematic (an undocumented format); it is no latency"


@dataclass(frozen=True)
class Row:
    """Nodes of one operator, types and rank that met one fate. processor ``none``: the compiler failed on them."""

    processor: Processor
    operator: str
    dtype: str | None
    rank: int | None
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class PartVerdict:
    """What the compiler made of one part. partitions: on the NPU; error: its words where it made nothing."""

    end: End
    error: str
    partitions: int
    rows: tuple[Row, ...]
    traffic: Traffic | None

    def count(self, processor: Processor) -> int:
        """Nodes that run there, after ONNX Runtime's own rewrites."""
        return sum(len(row.nodes) for row in self.rows if row.processor == processor)

    @property
    def off_npu(self) -> tuple[Row, ...]:
        """What does not run on the NPU."""
        return tuple(row for row in self.rows if row.processor != "npu")

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, the same for the same model. Nodes are named where they do not run on the NPU."""
        npu = [row for row in self.rows if row.processor == "npu"]
        operators = Counter({row.operator: 0 for row in npu})
        for row in npu:
            operators[row.operator] += len(row.nodes)
        traffic = None if self.traffic is None else {"what": TRAFFIC, **asdict(self.traffic)}
        return {
            "end": self.end, "error": self.error, "partitions": self.partitions, "npu_nodes": self.count("npu"),
            "cpu_nodes": self.count("cpu"), "npu_operators": dict(sorted(operators.items())),
            "npu": [{**asdict(row), "nodes": len(row.nodes)} for row in npu],
            "off_npu": [asdict(row) for row in self.off_npu], "traffic": traffic,
        }  # fmt: skip


def compile_part(model: Path, context: Path, settings: Settings, limits: Limits | None = None) -> PartVerdict:
    """Compile an .onnx file into ``context`` and say what became of its nodes; never raises for what the compiler does.

    Where the compiler crashes without naming a node, the node is looked for by compiling pieces of the graph.
    """
    limits = limits or Limits()
    done = compile_onnx(model, context, settings, limits)
    nodes = _Nodes(model)
    if done.end == "compiled":
        rows = _rows(done, nodes)
        on_npu = sum(partition.on_npu for partition in done.partitions)
        return PartVerdict("compiled", "", on_npu, rows, done.traffic)
    named = [name for name, *_ in _ERROR.findall(done.log)]
    if done.end == "crashed" and not named:
        suspect = find_suspect(model, settings, limits)
        named = [suspect] if suspect else []
    reason = {"crashed": "the compiler crashed", "refused": "the compiler gave an error"}.get(done.end, done.end)
    failed = tuple(nodes.row("none", name, nodes.operator(name), f"{reason} ({done.error})") for name in named[:1])
    return PartVerdict(done.end, done.error, 0, failed, None)


def _rows(done: Compilation, known: _Nodes) -> tuple[Row, ...]:
    reasons = _reasons(done.log)
    rows = [
        known.row("npu", name, op, "")
        if partition.on_npu
        else known.row("cpu", name, op, reasons.get(name, "no reason given"))
        for partition in done.partitions
        for name, op in partition.nodes
    ]
    return tuple(_merged(rows))


def _merged(rows: Iterable[Row]) -> list[Row]:
    groups: dict[Row, list[str]] = {}
    for row in rows:
        groups.setdefault(replace(row, nodes=()), []).extend(row.nodes)
    merged = [replace(row, nodes=tuple(nodes)) for row, nodes in groups.items()]
    return sorted(merged, key=lambda row: tuple(map(str, astuple(row))))


def _reasons(log: str) -> dict[str, str]:
    """Node name -> why the execution provider did not take it, in its own words."""
    found: dict[str, str] = {}
    for block in _FAILED.findall(log):
        reason = _REASON.search(block)
        if reason:
            text = " ".join(reason[1].split())
            found.update(dict.fromkeys(_NODE.findall(block[: reason.start()]), text))
    return found


class _Nodes:
    """The nodes of a model by name, with what is known of their first output."""

    def __init__(self, model: Path) -> None:
        proto = onnx.load(model, load_external_data=False)
        graph = onnx.shape_inference.infer_shapes(proto).graph
        self._types: Mapping[str, onnx.TypeProto] = {
            value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self._nodes = {node.name: node for node in graph.node}

    def operator(self, name: str) -> str:
        node = self._nodes.get(name)
        return "?" if node is None else node.op_type

    def row(self, processor: Processor, name: str, operator: str, reason: str) -> Row:
        """``name`` as a row; dtype and rank are unknown for a node that ONNX Runtime made itself."""
        node = self._nodes.get(name)
        kind = None if node is None else self._types.get(node.output[0])
        if kind is None or not kind.tensor_type.elem_type:
            return Row(processor, operator, None, None, reason, (name,))
        dtype = onnx.TensorProto.DataType.Name(kind.tensor_type.elem_type).lower()
        dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
        return Row(processor, operator, dtype, len(kind.tensor_type.shape.dim), reason, (name,))
