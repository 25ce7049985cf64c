"""How right the QNN rule table is, against the compiler itself: python -m benchmarks.qnn_rules.

Graphs of the family's models in small sizes, as the onnx and npu pipelines lower them and as the reference exports
them, are compiled for the HTP; each node that the compiler was asked about is compared with what the table says of it.
Positive is "does not run on the NPU". Writes benchmarks/results/qnn_rules.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir

from benchmarks import reference_export
from edgesam_deploy.model.registry import load
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.ops.judge import read
from edgesam_deploy.ops.of_model import lower
from edgesam_deploy.optimizer import as_program, optimize, read_model, run_passes
from edgesam_deploy.passes.onnx import eliminate_dead, fold_constants, fold_shapes, freeze_dims
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.rules import RuleTable, load_table
from edgesam_deploy.targets.rules.qnn_compiler import PROVIDER, Assignment, assignments

RESULTS = Path(__file__).parent / "results"
CWSAM = Path(__file__).parents[1] / "tests" / "data" / "cwsam_configs.json"
DECODER = {"mlp_dim": 128}
REPVIT: dict[str, Any] = {
    "image_size": 256, "embed_dim": 64, "mask_decoder": DECODER,
    "image_encoder": {"channels": (16, 24, 32, 48), "depths": (2, 2, 3, 2), "squeeze": (0, 2), "out_channels": 64},
}  # fmt: skip
VIT: dict[str, Any] = {
    "image_size": 256, "embed_dim": 64, "mask_decoder": DECODER,
    "image_encoder": {
        "width": 48, "depth": 3, "heads": 3, "global_blocks": (1,), "window": 7, "out_channels": 64,
    },
}  # fmt: skip
SMALL: Mapping[str, Any] = {
    "edge_sam": REPVIT, "edge_sam_dyt": REPVIT, "edge_sam_dyt_hq": REPVIT, "vit_b": VIT, "sam_hq_vit_b": VIT,
    "cwsam": "cwsam_tiny", "cwsam_hierarchical_moe_10b": "cwsam_h10b_tiny",
}  # fmt: skip
REFERENCES: tuple[tuple[str, reference_export.Part], ...] = (
    ("edge_sam", "encoder"), ("edge_sam", "decoder"), ("edge_sam_dyt_hq", "hq_decoder"),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One graph: nodes by what the table says and what the compiler does. unasked: those that ONNX Runtime removed or
    merged before it asked. wrong: operators of the nodes that the table was wrong about.
    """

    graph: str
    right_on: int = 0
    right_off: int = 0
    false_alarms: int = 0
    missed: int = 0
    unknown: int = 0
    unasked: int = 0
    crashed: bool = False
    crash_predicted: bool = False
    wrong: tuple[str, ...] = ()


def graphs(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every graph with its name; what the reference exports also static, which makes the compiler crash."""
    configs = json.loads(CWSAM.read_text())
    for name, config in SMALL.items():
        model = load(name, seed=0, config=configs[config] if isinstance(config, str) else config)
        targets = ("onnx",) if isinstance(config, str) else ("onnx", "npu")
        for target in targets:
            place = folder / f"{name}-{target}"
            place.mkdir()
            for part, path in lower(model, make_target(target), place).items():
                yield f"{name}, {part}, {target} pipeline", path
    for name, part in REFERENCES:
        model = load(name, seed=0, config=SMALL[name])
        path = folder / f"reference-{name}-{part}.onnx"
        assert isinstance(model, Sam)
        reference_export.export_reference(model, part, path, check=False)
        yield f"{name}, {part}, reference export", path
        if part == "decoder":
            for target in ("onnx", "qnn"):
                static = path.with_name(f"{target}-{path.name}")
                optimize(path, static, target, points=5, proof="off")
                yield f"{name}, {part}, reference export after optimize --target {target}", static
            yield f"{name}, {part}, reference export with 5 points, shapes folded", with_points(path, 5)


def with_points(path: Path, points: int) -> Path:
    """The same file with its number of points given and what hangs on it worked out; nothing else is rewritten."""
    program = as_program(path.stem, read_model(path), {"num_points": points})
    fold = (fold_shapes, fold_constants)
    program, _ = run_passes(program, (freeze_dims({"num_points": points}), *fold, *fold, eliminate_dead), "off")
    static = path.with_name(f"{points}-points-{path.name}")
    onnx_ir.save(program.onnx, static)
    return static


def compare(graph: str, path: Path, answer: Assignment, table: RuleTable) -> Outcome:
    """The table's word on each node beside the compiler's."""
    verdicts = {use.name: table.judge(use) for use in read(path).uses}
    if answer.refused:
        predicted = any("crash" in verdict.reason for verdict in verdicts.values())
        return Outcome(graph, unasked=len(verdicts), crashed=answer.crashed, crash_predicted=predicted)
    counts: dict[str, Any] = Counter()
    wrong = []
    for name, verdict in verdicts.items():
        if name not in answer.nodes:
            counts["unasked"] += 1
            continue
        operator, provider = answer.nodes[name]
        on_npu = provider == PROVIDER
        if verdict.status == "unknown":
            counts["unknown"] += 1
        elif on_npu == (verdict.status != "unsupported"):
            counts["right_on" if on_npu else "right_off"] += 1
        else:
            counts["false_alarms" if on_npu else "missed"] += 1
            wrong.append(f"{operator} {'runs' if on_npu else 'does not run'}")
    return Outcome(graph, **counts, wrong=tuple(f"{n}: {count}" for n, count in sorted(Counter(wrong).items())))


def totals(outcomes: list[Outcome]) -> dict[str, Any]:
    """Sums, and precision and recall of "does not run on the NPU"; None where there is nothing to divide by."""
    fields = ("right_on", "right_off", "false_alarms", "missed", "unknown", "unasked")
    found: dict[str, Any] = {name: sum(getattr(outcome, name) for outcome in outcomes) for name in fields}
    said, off = found["right_off"] + found["false_alarms"], found["right_off"] + found["missed"]
    found["precision"] = found["right_off"] / said if said else None
    found["recall"] = found["right_off"] / off if off else None
    asked = found["right_on"] + said + found["missed"]
    found["accuracy"] = (found["right_on"] + found["right_off"]) / asked if asked else None
    untouched = [outcome for outcome in outcomes if not outcome.crashed and not outcome.right_on + outcome.false_alarms]
    found["missed_in_graphs_left_alone"] = sum(outcome.missed for outcome in untouched)
    off -= sum(outcome.missed + outcome.right_off for outcome in untouched)
    found["recall_elsewhere"] = (found["right_off"] - sum(o.right_off for o in untouched)) / off if off else None
    found["crashes"] = sum(outcome.crashed for outcome in outcomes)
    found["crashes_predicted"] = sum(outcome.crashed and outcome.crash_predicted for outcome in outcomes)
    return found


def written(outcomes: list[Outcome], table: RuleTable) -> dict[str, Any]:
    """The content of the JSON file."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("onnxruntime-qnn", "onnxruntime", "onnx", "torch")},
        "table": f"{table.name}, {table.runtime}, {table.version}",
        "totals": totals(outcomes),
        "graphs": [asdict(outcome) for outcome in outcomes],
    }


def markdown(content: Mapping[str, Any]) -> str:
    """The content of the .md file."""
    found = content["totals"]
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    lines = [
        "# The QNN rule table against Qualcomm's compiler",
        "",
        f"`python -m benchmarks.qnn_rules`, {content['date']}, {content['machine']}; {versions}.",
        f"Table: {content['table']}. Small configurations with random weights; nodes, not models, are counted.",
        "",
        f"Judged right: {_percent(found['accuracy'])} of the nodes that were asked about and are known to the table.",
        f'"Does not run on the NPU": precision {_percent(found["precision"])}, recall {_percent(found["recall"])} '
        f"({found['right_off']} right, {found['false_alarms']} false alarms, {found['missed']} missed).",
        f"{found['missed_in_graphs_left_alone']} of the missed are in graphs of which the compiler takes no node, "
        f"for a reason that no single node has; recall in the others {_percent(found['recall_elsewhere'])}.",
        f"{found['unknown']} nodes are unknown to the table; {found['unasked']} were removed or merged before the "
        "compiler saw them.",
        f"Crashes of the compiler: {found['crashes']}, of which the table names the cause of "
        f"{found['crashes_predicted']}.",
        "",
        "| graph | runs, and said so | does not, and said so | false alarms | missed | unknown | not asked | wrong |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in content["graphs"]:
        cells = [row[name] for name in ("right_on", "right_off", "false_alarms", "missed", "unknown", "unasked")]
        crash = f"crash, cause {'named' if row['crash_predicted'] else 'not named'}" if row["crashed"] else ""
        lines.append(f"| {row['graph']} | {' | '.join(map(str, cells))} | {crash or '; '.join(row['wrong'])} |")
    return "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "not defined" if value is None else f"{100 * value:.1f} %"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the QNN rule table against Qualcomm's compiler.")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args(arguments)
    table = load_table("qnn_htp")
    with tempfile.TemporaryDirectory() as folder:
        named = list(graphs(Path(folder)))
        answers = assignments([path for _, path in named])
        outcomes = [compare(name, path, answer, table) for (name, path), answer in zip(named, answers, strict=True)]
    content = written(outcomes, table)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "qnn_rules.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (given.output / "qnn_rules.md").write_text(markdown(content), encoding="utf-8")
    print(markdown(content))


if __name__ == "__main__":
    main()
