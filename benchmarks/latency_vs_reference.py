"""Latency of our ONNX bundle against the reference scripts' export of the same weights, interleaved, on this CPU.

    python -m benchmarks.latency_vs_reference [--rounds 15] [--threads 2] [--out benchmarks/results] [--bundle DIR]

Builds ``edge_sam`` for ``onnx`` with 5 slots (or takes a bundle that is there), exports the baseline, and writes
``latency_vs_reference.md`` and ``.json``. Both decoders get the same prompt with the same number of tokens, one of them
SAM's padding point. Exit code 0 when measured, whatever the figures; 1 when refused: a baseline that is not the
reference's graph, or a decoder that computes something else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgesam_deploy as ed
from benchmarks.interleaved import Candidate, Comparison, Machine, arguments, compare, ended, write_json
from benchmarks.reference_export import COUNTS, PARTS, Part, count_operators, example_inputs, export_reference
from edgesam_deploy.errors import BundleError, EdgeSamDeployError

POINTS = 5
GOALS: dict[Part, float] = {"encoder": 0.92, "decoder": 0.70}  # of the baseline's wall time, at most
CALLS: dict[Part, int] = {"encoder": 1, "decoder": 3}  # of about 200 ms and 30 ms
SAME_MASKS = 1e-3  # relative L2: fp32 graphs of one function differ by 1e-6, other weights by 1
REFERENCE, OURS = "reference export", "edgesam-deploy"


class NotComparable(EdgeSamDeployError):
    """A bundle that does not compute what the baseline computes."""


@dataclass(frozen=True)
class Result:
    """One part: what was measured, how far the outputs lie apart, and the operators on both sides."""

    part: Part
    comparison: Comparison
    difference: float
    nodes: dict[str, int]

    @property
    def verdict(self) -> str:
        return self.comparison.verdict(OURS, GOALS[self.part])

    def sentence(self) -> str:
        """One line: the ratio, the goal and whether it is reached."""
        ours, again = self.comparison[OURS], self.comparison.again
        return (
            f"{self.part}: ratio {ours.wall} by wall clock, {ours.cpu} by CPU time; goal {GOALS[self.part]}: "
            f"**{self.verdict}** (A/A {again.wall.median:.3f}; outputs {self.difference:.1e} apart in relative L2)"
        )

    def json(self) -> dict[str, Any]:
        return {
            "part": self.part,
            "goal": GOALS[self.part],
            "ratio": self.comparison[OURS].wall.median,
            "verdict": self.verdict,
            "outputs_relative_l2": self.difference,
            "nodes": self.nodes,
        }


def slot_count(decoder: Candidate) -> int:
    """N of a bundle's decoder, 5 where it is dynamic. Raises BundleError for a layout unlike the baseline's."""
    shapes = {i.name: i.shape for i in decoder.session(1).get_inputs()}
    wanted = {"image_embeddings", "point_coords", "point_labels"}
    if set(shapes) != wanted or shapes["point_labels"][0] != 1:
        raise BundleError(
            f"{decoder.path.name} takes {shapes}; the baseline takes {sorted(wanted)} and one prompt per call: "
            "build with --target onnx and no other option than --points"
        )
    count = shapes["point_labels"][1]
    return count if isinstance(count, int) else POINTS


def outputs_apart(reference: Candidate, ours: Candidate, inputs: dict[str, NDArray[Any]]) -> float:
    """Largest relative L2 distance between outputs of the same name."""
    first, second = reference.session(1), ours.session(1)
    names = [out.name for out in first.get_outputs()]
    pairs = zip(first.run(names, inputs), second.run(names, inputs), strict=True)
    return max(float(np.linalg.norm(b - a) / np.linalg.norm(a)) for a, b in pairs)


def measure(model: ed.Sam, part: Part, baseline: Path, bundle: Path, *, rounds: int, threads: int) -> Result:
    """Run one part's pair. Raises BundleError, and NotComparable when the decoders disagree."""
    reference = Candidate(REFERENCE, baseline)
    ours = Candidate(OURS, bundle / f"{part}.onnx")
    if not ours.path.exists():
        raise BundleError(f"{bundle} has no {ours.path.name}; --bundle takes the folder of an onnx build")
    points = slot_count(ours) if part == "decoder" else POINTS
    inputs = {name: value.numpy() for name, value in example_inputs(model, part, points).items()}
    difference = outputs_apart(reference, ours, inputs)
    if part == "decoder" and not difference <= SAME_MASKS:
        raise NotComparable(
            f"decoder: outputs lie {difference:.1e} apart in relative L2, {SAME_MASKS:.0e} allowed; "
            "was the bundle built from other weights? name them with --checkpoint or --seed"
        )
    comparison = compare(part, reference, [ours], inputs, threads=threads, rounds=rounds, calls=CALLS[part])
    nodes = {c.name: count_operators(c.path).total() for c in (reference, ours)}
    return Result(part, comparison, difference, nodes)


def report(machine: Machine, results: Sequence[Result], weights: str) -> str:
    """The Markdown file."""
    sections = [f"{result.comparison.markdown()}\n{result.sentence()}\n" for result in results]
    return "\n".join(
        [
            "# Latency against the reference's export\n",
            f"{machine}\n",
            f"Weights: {weights}. Ratios are medians over interleaved rounds; see `benchmarks/interleaved.py`. The "
            "reference's encoder has a bilinear neck and ours the bicubic one of the checkpoint, hence the distance "
            "between their outputs.\n",
            *sections,
        ]
    )


def run(args: argparse.Namespace) -> None:
    """Build, export, measure, write."""
    model = ed.load("edge_sam", checkpoint=args.checkpoint, seed=args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = args.bundle
        if bundle is None:
            print("building the bundle", file=sys.stderr)
            bundle = folder / "bundle"
            ed.build(model, target="onnx", out=bundle, points=POINTS)
        results = []
        for part in PARTS:
            print(f"{part}: exporting the baseline, then {args.rounds} rounds", file=sys.stderr)
            baseline = export_reference(model, part, folder / f"reference_{part}.onnx")
            results.append(measure(model, part, baseline, bundle, rounds=args.rounds, threads=args.threads))
    machine = Machine.here()
    text = report(machine, results, str(model.weights))
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "latency_vs_reference.md").write_text(text)
    write_json(
        args.out / "latency_vs_reference.json",
        machine,
        [result.comparison for result in results],
        weights=str(model.weights),
        published_counts=COUNTS,
        parts=[result.json() for result in results],
    )


def main(argv: Sequence[str] | None = None) -> int:
    return ended(lambda: run(arguments(__doc__, argv)), refused=1)


if __name__ == "__main__":
    sys.exit(main())
