"""What each precision of a target costs in parity and saves in bytes: python -m benchmarks.precision_table TARGET ...

    python -m benchmarks.precision_table coreml tflite tensorrt qnn
    python -m benchmarks.precision_table tensorrt --model edge_sam_dyt
    python -m benchmarks.precision_table coreml --precisions palette4 --set deployment_target=iOS18
    python -m benchmarks.precision_table coreml --precisions fp16 --set auto_mixed=true --model edge_sam_dyt

Builds the model in every precision of the target (or in those named) at its own size and measures each artifact as
``edgesam-deploy check --full`` does (qnn, whose emulator takes minutes a run: as ``check`` does), whether it is within
its bounds or not, on pictures that calibration did not see. Writes ``precision_<target>.{md,json}`` after every row,
and ``precision.md`` over all targets; a row that is measured again replaces the old one, others stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from benchmarks.interleaved import Machine, ended
from edgesam_deploy import build, check, load
from edgesam_deploy.bundle import Bundle
from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.configs import MODELS, SamConfig
from edgesam_deploy.model.cwsam.model import Cwsam
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.parity import Parity
from edgesam_deploy.targets import make_target, target_class
from edgesam_deploy.targets.base import Target

MIB = 2**20
COLUMNS = (
    "model", "precision", "size, MiB", "embeddings, relative L2", "logits, relative L2", "scores, max abs",
    "mask IoU, decided pixels", "mask IoU", "flipped pixels", "other best mask", "verdict", "within",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One artifact. ``sizes``: MiB of the files of each part; figures are the worst over pictures and prompts."""

    model: str
    precision: str
    options: dict[str, Any]
    sizes: dict[str, float]
    embeddings: float
    logits: float
    scores: float
    decided_mask_iou: float
    mask_iou: float
    flipped_pixels: float
    best_mask_flips: int
    cases: int
    pictures: int
    verdict: str
    reasons: int
    bound_relative_l2: float
    bound_mask_iou: float
    executed: str
    weights: str
    machine: dict[str, Any]
    names: list[str] = field(default_factory=list)  # of the pictures


def precisions_of(target: str) -> tuple[str, ...]:
    """What the target's option ``precision`` may be, its default first. Raises UnknownName for an unknown target."""
    cls: Any = target_class(target)
    names = get_args(get_type_hints(cls)["precision"])
    own = vars(cls).get("precisions", names)  # a target that has its parent's option may refuse some of its values
    return tuple(sorted((name for name in names if name in own), key=lambda name: name != cls.precision))


def ungated(target: Target) -> Target:
    """The target, but ``build`` leaves judging to the caller, so that a precision outside its bounds is written."""
    cls = type(target)
    half = target.half if target.mixes else "none"  # islands are found where fp16 is judged
    later = type(cls.__name__, (cls,), {"unmeasured": "measured by the benchmark", "half": half})
    return later(**{f.name: getattr(target, f.name) for f in fields(target)})  # type: ignore[no-any-return]


def measured(
    model: Sam | Cwsam, target: Target, folder: Path, pictures: Mapping[str, NDArray[np.uint8]] | None = None
) -> Row:
    """Build into ``folder`` and measure, on the shipped photographs and seeded scenes unless ``pictures`` are given."""
    bundle = build(model, ungated(target), folder, proof="off", overwrite=True, progress=_told)
    parity = check(folder, model, pictures=pictures, full=not target.slow_to_run, progress=_told)
    return _row(bundle, parity, Machine.here((*target.tools, "torch", "numpy")))


def _row(bundle: Bundle, parity: Parity, machine: Machine) -> Row:
    found, outputs = parity.summary(), parity.summary()["outputs"]
    chosen = bundle.manifest["options"]
    other = {name: value for name, value in make_target(bundle.target).options().items() if chosen[name] != value}
    return Row(
        model=bundle.manifest["model"]["name"],
        precision=parity.precision,
        options={name: chosen[name] for name in sorted(other) if name != "precision"},
        sizes=_sizes(bundle),
        embeddings=outputs["embeddings"]["relative_l2"],
        logits=outputs["logits"]["relative_l2"],
        scores=outputs["scores"]["max_abs"],
        decided_mask_iou=found["decided_mask_iou"],
        mask_iou=found["mask_iou"],
        flipped_pixels=found["flipped_pixels"],
        best_mask_flips=found["best_mask_flips"],
        cases=found["cases"],
        pictures=found["pictures"],
        verdict=parity.verdict,
        reasons=len(parity.reasons),
        bound_relative_l2=parity.bounds.relative_l2,
        bound_mask_iou=parity.bounds.mask_iou,
        executed=parity.executed,
        weights=parity.reference.split("; ", 1)[1],
        machine=asdict(machine),
        names=list(dict.fromkeys(row.picture for row in parity.rows)),
    )


def _sizes(bundle: Bundle) -> dict[str, float]:
    """MiB by part: of its file, or of everything in its folder. A file that parts share counts for the first."""
    seen: set[str] = set()
    sizes = {}
    for part, content in bundle.manifest["parts"].items():
        mine = {n for n in bundle.manifest["files"] if n == content["file"] or n.startswith(f"{content['file']}/")}
        sizes[part] = sum(bundle.manifest["files"][name]["bytes"] for name in mine - seen) / MIB
        seen |= mine
    return sizes


def _told(step: str) -> None:
    print(f"  {step}", file=sys.stderr, flush=True)


def markdown(target: str, rows: Sequence[Row]) -> str:
    """The table, a line per row, and what ran where."""
    return _headed(f"Precisions of {target}", f"precision_table {target}", [COLUMNS, *map(_cells, rows)], rows)


def overview(folder: Path) -> str:
    """The table over every target that has been measured, from their files."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("precision_*.json"))]
    rows = [(content["target"], Row(**entry)) for content in found for entry in content["rows"]]
    rows.sort(key=lambda pair: (pair[1].model, pair[0]))
    lines = [("target", *COLUMNS), *((target, *_cells(row)) for target, row in rows)]
    return _headed("Precisions", "precision_table TARGET ...", lines, [row for _, row in rows])


def _headed(title: str, command: str, lines: Sequence[Sequence[str]], rows: Sequence[Row]) -> str:
    table = [f"| {' | '.join(cells)} |" for cells in lines]
    table.insert(1, f"|{'---|' * len(lines[0])}")
    ran = dict.fromkeys(
        f"- {r.executed}; {r.weights}; {', '.join(r.names) or f'{r.pictures} pictures'}; {Machine(**r.machine)}"
        for r in rows
    )
    head = (
        f"# {title}\n\nWritten by `python -m benchmarks.{command}`. Artifact against "
        "fp32 PyTorch, the worst over all pictures and prompts; sizes by part, in the order of the parts; flipped "
        "pixels: share of the picture; other best mask: cases in which another mask has the best score. Defined in "
        "`edgesam_deploy/parity`.\n\n"
    )
    return head + "\n".join(table) + "\n\nWhat ran, weights, pictures, machine:\n\n" + "\n".join(ran) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    options = "".join(f", {name} {value}" for name, value in row.options.items())
    claimed = row.verdict != "not verified"
    return (
        f"`{row.model}`", f"`{row.precision}`{options}",
        " + ".join(f"{size:.2f}" for size in row.sizes.values()), f"{row.embeddings:.2e}", f"{row.logits:.2e}",
        f"{row.scores:.2e}", f"{row.decided_mask_iou:.5f}", f"{row.mask_iou:.5f}", f"{row.flipped_pixels:.1e}",
        f"{row.best_mask_flips} of {row.cases}", row.verdict,
        f"{row.bound_relative_l2:.1e}, {row.bound_mask_iou}" if claimed else "nothing claimed",
    )  # fmt: skip


def save(folder: Path, target: str, row: Row) -> None:
    """Put the row among those of earlier runs and write both files."""
    data, text = folder / f"precision_{target}.json", folder / f"precision_{target}.md"
    rows = [Row(**entry) for entry in json.loads(data.read_text())["rows"]] if data.is_file() else []
    key = (row.model, row.precision, row.options)
    rows = [old for old in rows if (old.model, old.precision, old.options) != key]
    order = {name: place for place, name in enumerate(precisions_of(target))}
    rows = sorted([*rows, row], key=lambda r: (r.model, order.get(r.precision, len(order)), str(r.options)))
    folder.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps({"target": target, "rows": [asdict(r) for r in rows]}, indent=2) + "\n")
    text.write_text(markdown(target, rows))
    (folder / "precision.md").write_text(overview(folder))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="+", help="targets, such as coreml or tflite")
    parser.add_argument("--precisions", help="only these, with commas between (default: all of the target)")
    parser.add_argument("--model", default="edge_sam", help="a promptable model (default edge_sam)")
    parser.add_argument("--checkpoint", type=Path, help="weights (default: seeded)")
    parser.add_argument("--seed", type=int, help="seed of the weights (default 0)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other options of the target")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    if any("=" not in given for given in args.set):
        raise UsageError(f"--set {' '.join(args.set)}: give NAME=VALUE, such as deployment_target=iOS18")
    options = {name: _value(text) for name, text in (given.split("=", 1) for given in args.set)}
    wanted = [
        make_target(target, precision=precision, **options)
        for target in args.targets
        for precision in (args.precisions.split(",") if args.precisions else precisions_of(target))
    ]
    config = MODELS.get(args.model)
    if config is not None and not (isinstance(config, SamConfig) and config.mask_decoder):
        raise UsageError(f"--model {args.model} takes no prompts: name one that does, such as edge_sam")
    model = load(args.model, args.checkpoint, seed=args.seed)
    for target in wanted:
        print(f"{target.name} {target.options()['precision']}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as place:
            row = measured(model, target, Path(place) / "bundle")
        save(args.out, target.name, row)
        print(markdown(target.name, [row]).split("\n\n")[2])


def _value(text: str) -> Any:
    """true, false and numbers as what they are, anything else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def main(argv: Sequence[str] | None = None) -> int:
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
