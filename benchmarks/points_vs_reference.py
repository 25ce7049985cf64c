"""Our decoder against the reference's export for every number of points: python -m benchmarks.points_vs_reference.

One decoder is built per number of points, with as many slots, since a static decoder is what one ships; the reference's
takes any number. Both get the same points. Interleaved as ``benchmarks/interleaved.py`` says; writes
``results/points_vs_reference.{md,json}``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import edgesam_deploy as ed
from benchmarks.interleaved import Candidate, Comparison, Machine, compare, ended, write_json
from benchmarks.latency_vs_reference import OURS, REFERENCE, SAME_MASKS, NotComparable, outputs_apart
from benchmarks.reference_export import example_inputs, export_reference
from edgesam_deploy.capture import capture
from edgesam_deploy.contract import MASK_DECODER
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.targets import make_target

MOST = 40
CALLS = 3  # of about 30 ms
GOAL = 1.0  # never slower
GOALS = {5: 0.70}


def counts(text: str) -> list[int]:
    """``1-40`` or ``1,2,5`` as numbers of points. Raises ArgumentTypeError."""
    try:
        if "-" in text:
            first, last = (int(part) for part in text.split("-"))
            found = list(range(first, last + 1))
        else:
            found = [int(part) for part in text.split(",")]
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r}: give a range such as 1-40, or numbers such as 1,2,5") from e
    if not found or not all(1 <= n <= 1024 for n in found):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of points are 1 to 1024")
    return found


def our_decoder(model: ed.Sam, points: int, folder: Path) -> Path:
    """The decoder that ``build --target onnx --points N`` emits, without the encoder and the proofs."""
    target = make_target("onnx", points=points)
    interface = target.interface(model.config)
    program = next(p for p in capture(model, interface) if p.name == MASK_DECODER)
    program = Engine("off").run(program, target.pipeline(model.config))
    path = folder / f"decoder_{points}.onnx"
    target.emit(program, interface, path, {})
    return path


def measure(model: ed.Sam, baseline: Path, points: int, folder: Path, *, rounds: int, threads: int) -> Comparison:
    """Both decoders on the same points. Raises NotComparable where their outputs lie apart."""
    reference, ours = Candidate(REFERENCE, baseline), Candidate(OURS, our_decoder(model, points, folder))
    inputs = {name: value.numpy() for name, value in example_inputs(model, "decoder", points).items()}
    difference = outputs_apart(reference, ours, inputs)
    if not difference <= SAME_MASKS:
        raise NotComparable(f"{points} points: outputs lie {difference:.1e} apart in relative L2")
    found = compare(f"{points} points", reference, [ours], inputs, threads=threads, rounds=rounds, calls=CALLS)
    ours.path.unlink()
    return found


def report(machine: Machine, found: dict[int, Comparison], weights: str) -> str:
    """The Markdown file."""
    rows = [
        f"| {n} | {c[OURS].wall} | {c.again.wall.median:.3f} | {c[OURS].cpu} | {c.cores:.1f} "
        f"| {c.verdict(OURS, GOALS.get(n, GOAL))} (at most {GOALS.get(n, GOAL):.2f}) |"
        for n, c in found.items()
    ]
    trusted = {n: c for n, c in found.items() if c.trusted}
    slowest = max(trusted, key=lambda n: trusted[n][OURS].wall.median, default=None)
    worst = "" if slowest is None else f"slowest at {slowest} points: {trusted[slowest][OURS].wall}; "
    return "\n".join([
        "# The decoder against the reference's export, by number of points\n",
        f"{machine}\n",
        f"Weights: {weights}. Ratios are medians (quartiles) over interleaved rounds; `python -m "
        "benchmarks.points_vs_reference` writes this file. No verdict where A/A leaves 1 +- 0.05.\n",
        f"**{worst}{len(trusted)} of {len(found)} numbers of points measured with a verdict.**\n",
        "| points | wall ratio | A/A | CPU ratio | cores | verdict |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Export, build, measure, write."""
    model = ed.load("edge_sam", checkpoint=args.checkpoint, seed=args.seed)
    found: dict[int, Comparison] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        baseline = export_reference(model, "decoder", folder / "reference.onnx")
        for n in args.points:
            found[n] = measure(model, baseline, n, folder, rounds=args.rounds, threads=args.threads)
            print(f"{n} points: {found[n][OURS].wall} (A/A {found[n].again.wall.median:.3f})", file=sys.stderr)
    machine = Machine.here()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "points_vs_reference.md").write_text(report(machine, found, str(model.weights)))
    path = args.out / "points_vs_reference.json"
    write_json(path, machine, list(found.values()), weights=str(model.weights), points=list(found))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=counts, default=counts(f"1-{MOST}"), help=f"1-40 or 1,2,5 (default 1-{MOST})")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--threads", type=int, default=2, help="intra-op threads of every session (default 2)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", help="weights of both sides (default: seeded)")
    weights.add_argument("--seed", type=int, help="seed of both sides' weights (default 0)")
    return ended(lambda: run(parser.parse_args(argv)), refused=1)


if __name__ == "__main__":
    sys.exit(main())
