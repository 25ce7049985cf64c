"""Writes docs/operators.md from the rule tables: python -m benchmarks.operator_tables."""

from __future__ import annotations

from pathlib import Path

from edgesam_deploy.targets.rules import ALIASES, REPORTS, SEVERITY, RuleTable, Status, report_table

DOCUMENT = Path(__file__).parents[1] / "docs" / "operators.md"
MADE = {
    "onnx": "probed",
    "openvino": "probed",
    "qnn": "probed",
    "coreml": "read, in part run",
    "tflite": "read, in part run",
}
# what the family's graphs hold, as the pipelines lower them and as other exporters write them
OPERATORS = (
    "Add", "Cast", "Clip", "Concat", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "DFT", "Div", "Equal", "Erf",
    "Exp", "Expand", "Gather", "GatherND", "Gelu", "Gemm", "GreaterOrEqual", "If", "LayerNormalization", "MatMul",
    "Mul", "NonZero", "Not", "OneHot", "Pad", "Pow", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceSum", "Relu",
    "Reshape", "Resize", "ScatterND", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Sqrt", "Squeeze", "Sub", "Tanh",
    "Tile", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip
WORDS: dict[Status, str] = {"supported": "yes", "partial": "partly", "unknown": "?", "unsupported": "no"}
HEAD = """# What runs where

Written by `python -m benchmarks.operator_tables` from the rule tables in `edgesam_deploy/targets/rules/`.

    edgesam-deploy ops decoder.onnx --target qnn,rknn,coreml-ane        one row per operator, target and verdict
    edgesam-deploy ops out/edge_sam_demo/onnx --target all --html ops.html   the same as one page
    edgesam-deploy ops edge_sam --target generic                        a model not built: captured, random weights
    edgesam-deploy ops decoder.onnx -t qnn --fail-on unsupported        exit code 5 where something does not run
    edgesam-deploy ops decoder.onnx -t qnn --save-subgraph cut          each node that does not run, as a valid .onnx
    edgesam-deploy ops decoder.tflite -t xnnpack,tflite-gpu             a file of the runtime's own kind, or its bundle
    edgesam-deploy ops decoder.mlpackage                                and where Core ML would run it, by chip family
    edgesam-deploy ops out/edge_sam/coreml --compute-plan plan.json     beside what Core ML said on a Mac

A row says operator, count, types, ranks, status, reason, the rule's source and version, the pass that removes the
cause, and the nodes. `supported`: runs there. `partial`: runs, at a cost or on another unit, as the reason says.
`unsupported`: does not. `unknown`: no rule speaks of it, or the file does not say a type or rank; never taken for
supported.

The pass in "fixed by" is either one that `optimize` runs on any file (freeze_dims by `--points` or `--dim`), or one
that `build` runs on the model (`edgesam-deploy passes NAME` explains it): positions, for example, can only be moved out
of the decoder when it is built (`--io edgesam-npu`).

Every table names ONNX operators; for Core ML and LiteRT a rule also names what the operator becomes there. A `.tflite`
or `.mlpackage` is judged in its runtime's own operators: by the rules that name them, and where there are none, by the
rules about what becomes them, read backwards. `--target all` takes the tables that speak a file's operators. A reader
for another kind of file goes into `edgesam_deploy/ops` (READERS); its tables say `native`.

## Where Core ML runs a package: an estimate

The tables `coreml-ane-*` speak of one unit, the Neural Engine of a chip family. Their verdicts on a package's
operations in their order give, as a *static estimate*, how many run there, how many elsewhere (CPU or GPU), how many
nobody knows, and how often neighbours run on different units: at least, and at most over all choices for the unknown
ones. Types are those that the package declares: what it holds in fp32 does not run on the Neural Engine. Limits: five
axes; of tensors with four, 65536 channels and 16384 pixels a side; on the M1, kernels 13 wide. Compressed weights are
expanded at loading and not judged. Nothing was run on Apple hardware, and Core ML also chooses by cost.

What Core ML itself plans can be written on a Mac (macOS 14.4 or later, coremltools 8 or later) and shown beside it:

```python
import json, platform, sys
import coremltools as ct
from coremltools.models.compute_plan import MLComputePlan

units = {"MLNeuralEngineComputeDevice": "ANE", "MLGPUComputeDevice": "GPU", "MLCPUComputeDevice": "CPU"}
plan = {"schema": 1, "machine": platform.machine(), "system": f"macOS {platform.mac_ver()[0]}", "packages": {}}
for path in sys.argv[1:]:  # out/edge_sam/coreml/encoder.mlpackage ..
    found = MLComputePlan.load_from_path(ct.models.MLModel(path).get_compiled_model_path())
    rows = plan["packages"][path.rstrip("/").split("/")[-1]] = []
    for name, function in found.model_structure.program.functions.items():
        for op in (op for op in function.block.operations if op.outputs):
            usage = found.get_compute_device_usage_for_mlprogram_operation(op)
            cost = found.get_estimated_cost_for_mlprogram_operation(op)
            device = usage and units[type(usage.preferred_compute_device).__name__]
            row = {"function": name, "operator": op.operator_name.split(".")[-1], "output": op.outputs[0].name}
            rows.append({**row, "device": device, "cost": cost and cost.weight})
print(json.dumps(plan))
```

`ops --compute-plan` shows the operators and the cost by device, and every operation that runs elsewhere than the
estimate says. The lines above follow coremltools' documentation; they were not run, for want of a Mac. A file of
another form is refused, and the field named.
"""
TABLES = """
## The tables

Probed: generated by asking the runtime or compiler itself. Read: from the document named; nothing was run. In part
run: rows whose source says so come from conversions of this family's models.
How right the QNN table is against the compiler: [benchmarks/results/qnn_rules.md](../benchmarks/results/qnn_rules.md).

| target | runtime | version | rules | probed or read | source |
|---|---|---|---|---|---|
"""
MATRIX = """
## The family's operators

In the most favourable use that a table has a rule for; types, ranks and attributes narrow it, and the report says how.

"""


def best(table: RuleTable, operator: str) -> Status:
    """The best that the table says of an operator, in whatever use."""
    found = [rule.status for rule in table.rules if rule.op == operator and not rule.domain]
    if not found:
        return "unknown"
    status = min(found, key=SEVERITY.index)
    if table.unverified:
        return "partial" if status != "unsupported" else "unknown"
    return status


def document() -> str:
    """The text of docs/operators.md."""
    tables = {name: report_table(name) for name in REPORTS}
    rows = [
        f"| {name} | {table.runtime} | {table.version} | {len(table.rules)} | "
        f"{MADE.get(name, 'read')} | {table.source} |"
        for name, table in tables.items()
    ]
    made = [f"- {name}: {table.generated_by}." for name, table in tables.items() if MADE.get(name) != "probed"]
    aliases = ", ".join(f"`{alias}` is `{name}`" for alias, name in ALIASES.items())
    matrix = [
        f"| {operator} | {' | '.join(WORDS[best(table, operator)] for table in tables.values())} |"
        for operator in OPERATORS
    ]
    head = [f"| operator | {' | '.join(tables)} |", f"|---|{'---|' * len(tables)}"]
    return "".join(
        (HEAD, TABLES, _lines(rows), f"\nOther names: {aliases}.\n\n", _lines(made), MATRIX, _lines([*head, *matrix]))
    )


def _lines(rows: list[str]) -> str:
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write the document."""
    DOCUMENT.write_text(document(), encoding="utf-8")
    print(f"{DOCUMENT}: {len(REPORTS)} tables, {len(OPERATORS)} operators")


if __name__ == "__main__":
    main()
