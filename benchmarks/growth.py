"""How latency grows with prompts on one picture, with the model's frame and with the model.

    python -m benchmarks.growth [--prompts 1 4 16 64 256 1024] [--sizes 512 640 768 896 1024] [--models edge_sam ...]

Prompts: our decoder as docs/passes.md advises for many of them, per prompt against itself with one; the reference's
takes one a call, so its time per prompt does not change. Sizes and models: both parts against the reference scripts'
export of the same weights. Each comparison is one interleaved run (``benchmarks/interleaved.py``). Writes ``growth.md``
and ``growth.json``. An empty list leaves its part out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgesam_deploy as ed
from benchmarks.interleaved import AGAIN, Candidate, Comparison, Machine, Row, compare, compare_calls, ended, write_json
from benchmarks.latency_vs_reference import CALLS, OURS, POINTS, REFERENCE, SAME_MASKS, NotComparable, outputs_apart
from benchmarks.prompts_vs_reference import OPTIONS, Encoded, grid_prompts
from benchmarks.reference_export import PARTS, Part, example_inputs, export_reference
from edgesam_deploy.contract import IMAGE_ENCODER, MASK_DECODER
from edgesam_deploy.parity import seeded_scene

PROMPTS = (1, 4, 16, 64, 256, 1024)
SIZES = (512, 640, 768, 896, 1024)
MODELS = ("edge_sam", "edge_sam_m2", "edge_sam_m3")
NAMES: dict[Part, str] = {"encoder": IMAGE_ENCODER, "decoder": MASK_DECODER}


@dataclass(frozen=True)
class Step:
    """One model at one size: GMAC of each part, and both sides' times."""

    name: str
    gmacs: Mapping[Part, float]
    found: Mapping[Part, Comparison]


def by_prompts(ours: Encoded, counts: Sequence[int], *, rounds: int, threads: int) -> Comparison:
    """``ours`` with as many prompts on its picture as ``counts`` say; the baseline is one prompt."""
    prompts = {count: grid_prompts(count, ours.image_size) for count in (1, *counts)}

    def answering(count: int) -> Any:
        return lambda _: ours.predict_slots(*prompts[count])

    calls = {prompt_name(1): answering(1), AGAIN: answering(1)}
    calls |= {prompt_name(count): answering(count) for count in counts if count > 1}
    return compare_calls("prompts on one picture", calls, threads=threads, rounds=rounds, warmup=1)


def prompt_name(count: int) -> str:
    """Of its row."""
    return f"{count} prompt(s)"


def step(model: ed.Sam, name: str, folder: Path, *, rounds: int, threads: int) -> Step:
    """Both parts of ``model`` against the reference's export. Raises NotComparable where the decoders lie apart."""
    out = folder / "ours"
    bundle = ed.build(
        model, "onnx", out, points=POINTS, proof="off", overwrite=True, pictures={"scene": seeded_scene(3)}
    )
    macs = bundle.manifest["macs"]
    found: dict[Part, Comparison] = {}
    for part in PARTS:
        published = model.name == "edge_sam" and model.image_size == 1024
        reference = Candidate(REFERENCE, export_reference(model, part, folder / f"{part}.onnx", check=published))
        ours = Candidate(OURS, bundle.path / f"{part}.onnx")
        inputs = {key: value.numpy() for key, value in example_inputs(model, part, POINTS).items()}
        apart = outputs_apart(reference, ours, inputs)
        if part == "decoder" and not apart <= SAME_MASKS:
            raise NotComparable(f"{name}: decoders lie {apart:.1e} apart in relative L2, {SAME_MASKS:.0e} allowed")
        found[part] = compare(
            f"{part}, {name}", reference, [ours], inputs, threads=threads, rounds=rounds, calls=CALLS[part]
        )
    return Step(name, {part: macs[NAMES[part]] / 1e9 for part in PARTS}, found)


def prompt_rows(found: Comparison) -> list[str]:
    """The table of prompts: a call's time, and what a prompt costs of it against one alone."""

    def per_prompt(row: Row) -> str:
        count = 1 if row.name == AGAIN else int(row.name.split()[0])
        wall = row.wall
        return f"{row.wall_ms / count:.1f} | {wall.median / count:.3f} ({wall.low / count:.3f}-{wall.high / count:.3f})"

    return [
        "| on one picture | call, ms | per prompt, ms | per prompt, of one alone (quartiles) |",
        "|---|---|---|---|",
        *(f"| {row.name} | {row.wall_ms:.1f} | {per_prompt(row)} |" for row in found.rows),
        "",
    ]


def step_rows(steps: Sequence[Step]) -> list[str]:
    """The table of sizes or models; ``grows`` is ours over ours of the first row, beside its multiply-accumulates."""
    head = "| | part | GMAC | reference, ms | ours, ms | ratio (quartiles) | A/A | ours grows by | GMAC grow by |"
    rows = [head, "|---|---|---|---|---|---|---|---|---|"]
    for part in PARTS:
        first = steps[0]
        for s in steps:
            c, ours = s.found[part], s.found[part][OURS]
            grown = ours.wall_ms / first.found[part][OURS].wall_ms
            note = "" if c.trusted else ", no verdict"
            rows.append(
                f"| {s.name} | {part} | {s.gmacs[part]:.2f} | {c[REFERENCE].wall_ms:.1f} | {ours.wall_ms:.1f} | "
                f"{ours.wall} | {c.again.wall.median:.3f}{note} | {grown:.2f} | "
                f"{s.gmacs[part] / first.gmacs[part]:.2f} |"
            )
    return [*rows, ""]


def report(
    machine: Machine, prompts: Comparison | None, sizes: Sequence[Step], models: Sequence[Step], weights: str
) -> str:
    """The Markdown file."""
    lines = [
        "# How latency grows\n",
        f"{machine}\n",
        f"Weights: {weights}. `python -m benchmarks.growth` writes this file. Ratios are medians (quartiles) over "
        "interleaved rounds, within a row of one run; what grows from row to row is of runs one after the other. No "
        "verdict where A/A leaves 1 +- 0.05.\n",
    ]
    if prompts is not None:
        options = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in OPTIONS.items())
        lines += [f"## Prompts, built with {options}\n", f"{prompts.rounds} rounds.\n", *prompt_rows(prompts)]
    if sizes:
        lines += [f"## Frame, edge_sam, {POINTS} slots\n", *step_rows(sizes)]
    if models:
        lines += [f"## Model, {POINTS} slots\n", *step_rows(models)]
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    """Build, export, measure, write."""
    settings = {"rounds": args.rounds, "threads": args.threads}
    prompts, sizes, models, weights = None, [], [], ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.prompts:
            print("prompts", file=sys.stderr)
            model = _model("edge_sam", args.image_size)
            scene = seeded_scene(3)
            ed.build(model, "onnx", folder / "many", proof="off", pictures={"scene": scene}, **OPTIONS)
            predictor: Any = ed.open(folder / "many", threads=args.threads)
            predictor.set_image(scene)
            prompts, weights = by_prompts(Encoded(predictor), args.prompts, **settings), str(model.weights)
        for size in args.sizes:
            print(f"{size} pixels", file=sys.stderr)
            model = _model("edge_sam", size)
            sizes.append(step(model, f"{size} pixels", folder, **settings))
            weights = str(model.weights)
        for model_name in args.models:
            print(model_name, file=sys.stderr)
            model = _model(model_name, args.image_size)
            models.append(step(model, model_name, folder, **settings))
            weights = str(model.weights)
    machine = Machine.here()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "growth.md").write_text(report(machine, prompts, sizes, models, weights))
    comparisons = [c for s in (*sizes, *models) for c in s.found.values()]
    write_json(
        args.out / "growth.json", machine, [*([prompts] if prompts else []), *comparisons], weights=weights,
        gmacs={s.name: dict(s.gmacs) for s in (*sizes, *models)},
    )  # fmt: skip


def _model(name: str, size: int) -> ed.Sam:
    model = ed.load(name, config={"image_size": size})
    assert isinstance(model, ed.Sam)
    return model


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="*", default=list(PROMPTS), help="how many on one picture")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), help="sides of the model frame")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="of the EdgeSAM family, without an HQ branch")
    parser.add_argument("--image-size", type=int, default=1024, help="frame of prompts and models (default 1024)")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--threads", type=int, default=2, help="intra-op threads of every session (default 2)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return ended(lambda: run(parser.parse_args(argv)), refused=1)


if __name__ == "__main__":
    sys.exit(main())
