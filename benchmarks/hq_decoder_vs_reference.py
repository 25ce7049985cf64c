"""The HQ decoder of ``edge_sam_dyt_hq`` against the reference scripts' export of the same weights: work and latency.

    python -m benchmarks.hq_decoder_vs_reference [--rounds 15] [--threads 2] [--out benchmarks/results] [--bundle DIR]

The reference computes the HQ features, which depend on the picture alone, in every decoder call; ours computes them in
the encoder. Builds ``edge_sam_dyt_hq`` for ``onnx`` (or takes a bundle that is there), exports the baseline, counts the
multiply-accumulates of both for five points and SAM's padding point, times them in turns, and writes
``hq_decoder_vs_reference.md`` and ``.json``. Exit code 0 when measured, whatever the figures; 1 when refused: a
baseline that is not the reference's, or a decoder that computes another mask.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import edgesam_deploy as ed
from benchmarks.interleaved import Candidate, Comparison, Machine, arguments, compare, ended, write_json
from benchmarks.reference_export import NotTheReference, count_operators, example_inputs, export_reference
from edgesam_deploy.cost import COUNTED, model_macs, onnx_macs
from edgesam_deploy.errors import BundleError, EdgeSamDeployError
from edgesam_deploy.model.mask_decoder_hq import HqMaskDecoder

MODEL = "edge_sam_dyt_hq"
POINTS = 6  # five and the padding point
GOAL = 0.15  # of the reference's multiply-accumulates per prompt
PUBLISHED = 35.25e9  # multiply-accumulates of the reference's call: 70.5 GFLOP
TOLERANCE = 0.01
CALLS = 1  # the baseline's takes a third of a second
SAME_MASKS = 1e-3  # relative L2: fp32 graphs of one function differ by 1e-6, other weights by 1
REFERENCE, OURS = "reference export", "edgesam-deploy"
Arrays = dict[str, NDArray[Any]]


class NotComparable(EdgeSamDeployError):
    """A bundle that does not compute what the baseline computes."""


@dataclass(frozen=True)
class Result:
    """macs: by side and operator, per prompt; per_picture: in total by side, once; nodes: by side."""

    comparison: Comparison
    difference: float
    macs: Mapping[str, Mapping[str, int]]
    per_picture: Mapping[str, int]
    nodes: Mapping[str, int]

    @property
    def ratio(self) -> float:
        """Our multiply-accumulates per prompt over the reference's."""
        return sum(self.macs[OURS].values()) / sum(self.macs[REFERENCE].values())

    @property
    def verdict(self) -> str:
        return "reached" if self.ratio <= GOAL else "missed"

    def table(self) -> str:
        """GMAC by operator, and what each picture costs before any prompt."""
        operators = [name for name in COUNTED if any(name in counts for counts in self.macs.values())]
        rows = [(name, [self.macs[side].get(name, 0) for side in (REFERENCE, OURS)]) for name in operators]
        rows.append(("**per prompt**", [sum(self.macs[side].values()) for side in (REFERENCE, OURS)]))
        rows.append(("encoder, once per picture", [self.per_picture[side] for side in (REFERENCE, OURS)]))
        lines = [f"| {name} | {a / 1e9:.3f} | {b / 1e9:.3f} | {b / a if a else 0:.3f} |" for name, (a, b) in rows]
        return "\n".join([f"| GMAC | {REFERENCE} | {OURS} | ratio |", "|---|---|---|---|", *lines]) + "\n"

    def sentence(self) -> str:
        """The ratio of the work, the goal and whether it is reached; the ratio of the times."""
        ours, again = self.comparison[OURS], self.comparison.again
        return (
            f"Work per prompt: ratio {self.ratio:.3f}; goal {GOAL}: **{self.verdict}**. Latency: ratio {ours.wall} by "
            f"wall clock, {ours.cpu} by CPU time (A/A {again.wall.median:.3f}; masks {self.difference:.1e} apart in "
            "relative L2)"
        )

    def json(self) -> dict[str, Any]:
        return {
            "points": POINTS,
            "goal": GOAL,
            "ratio": self.ratio,
            "verdict": self.verdict,
            "macs": {side: dict(counts) for side, counts in self.macs.items()},
            "macs_per_picture": dict(self.per_picture),
            "nodes": dict(self.nodes),
            "masks_relative_l2": self.difference,
        }


def inputs_of_both(model: ed.Sam) -> Arrays:
    """The baseline's inputs, and our ``hq_features`` of the same picture."""
    inputs = example_inputs(model, "hq_decoder", POINTS)
    decoder = model.mask_decoder
    assert isinstance(decoder, HqMaskDecoder)
    intermediate = [value for name, value in inputs.items() if name.startswith("interm_embeddings_")]
    with torch.no_grad():
        features = decoder.hq_features(inputs["image_embeddings"], intermediate)
    return {name: value.numpy() for name, value in (*inputs.items(), ("hq_features", features))}


def own(candidate: Candidate, inputs: Arrays) -> Arrays:
    """Those of ``inputs`` that a file takes. Raises BundleError for one that takes others, or in other sizes."""
    wanted = {i.name: i.shape for i in candidate.session(1).get_inputs()}
    for name, shape in wanted.items():
        given = inputs[name].shape if name in inputs else ()
        if len(given) != len(shape) or any(isinstance(n, int) and n != g for n, g in zip(shape, given, strict=True)):
            raise BundleError(
                f"{candidate.path.name} takes {name} as {shape}, the comparison has {given or 'no such input'}: "
                f"build {MODEL} with --target onnx and no other option than --points {POINTS}"
            )
    return {name: inputs[name] for name in wanted}


def masks_apart(reference: Candidate, ours: Candidate, inputs: Arrays) -> float:
    """Relative L2 distance of the HQ masks. Scores are not compared: the reference gives that of another mask."""
    a, b = (c.session(1).run(["masks"], own(c, inputs))[0] for c in (reference, ours))
    return float(np.linalg.norm(b - a) / np.linalg.norm(a))


def check_work(macs: Mapping[str, int]) -> None:
    """Raise NotTheReference unless the baseline's work is the published one within 1 %."""
    found = sum(macs.values())
    if abs(found - PUBLISHED) > TOLERANCE * PUBLISHED:
        raise NotTheReference(f"the baseline does {found / 1e9:.2f} GMAC per call, {PUBLISHED / 1e9:.2f} are published")


def measure(model: ed.Sam, baseline: Path, bundle: Path, *, rounds: int, threads: int) -> Result:
    """Count and time both decoders. Raises BundleError, NotTheReference, NotComparable."""
    reference, ours = Candidate(REFERENCE, baseline), Candidate(OURS, bundle / "decoder.onnx")
    encoder = bundle / "encoder.onnx"
    if not (ours.path.exists() and encoder.exists()):
        raise BundleError(f"{bundle} lacks encoder.onnx or decoder.onnx; --bundle takes the folder of an onnx build")
    inputs = inputs_of_both(model)
    macs = {c.name: onnx_macs(c.path, inputs=own(c, inputs)) for c in (reference, ours)}
    check_work(macs[REFERENCE])
    difference = masks_apart(reference, ours, inputs)
    if not difference <= SAME_MASKS:
        raise NotComparable(
            f"masks lie {difference:.1e} apart in relative L2, {SAME_MASKS:.0e} allowed; was the bundle built from "
            "other weights? name them with --checkpoint or --seed"
        )
    size = model.image_size
    per_picture = {
        REFERENCE: model_macs(model.image_encoder, torch.empty(1, 3, size, size, device="meta")),
        OURS: sum(onnx_macs(encoder).values()),
    }
    comparison = compare("HQ decoder", reference, [ours], inputs, threads=threads, rounds=rounds, calls=CALLS)
    nodes = {c.name: count_operators(c.path).total() for c in (reference, ours)}
    return Result(comparison, difference, macs, per_picture, nodes)


def report(machine: Machine, result: Result, weights: str) -> str:
    """The Markdown file."""
    return "\n".join(
        [
            "# The HQ decoder against the reference's export\n",
            f"{machine}\n",
            f"Weights: {weights}. Five points and the padding point, no box. Work is counted from the shapes that each "
            "graph meets in a run; see `edgesam_deploy/cost.py`. What leaves the decoder stands in the encoder's row: "
            "for one prompt the sums are alike, every further one on the same picture saves the difference. Ratios of "
            "times are medians over interleaved rounds; see `benchmarks/interleaved.py`.\n",
            result.table(),
            result.comparison.markdown(),
            result.sentence() + "\n",
        ]
    )


def run(args: argparse.Namespace) -> None:
    """Build, export, measure, write."""
    model = ed.load(MODEL, checkpoint=args.checkpoint, seed=args.seed)
    assert isinstance(model, ed.Sam)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = args.bundle
        if bundle is None:
            print("building the bundle", file=sys.stderr)
            bundle = folder / "bundle"
            ed.build(model, target="onnx", out=bundle, points=POINTS)
        print(f"exporting the baseline, then {args.rounds} rounds", file=sys.stderr)
        baseline = export_reference(model, "hq_decoder", folder / "reference_hq_decoder.onnx")
        result = measure(model, baseline, bundle, rounds=args.rounds, threads=args.threads)
    machine = Machine.here()
    text = report(machine, result, str(model.weights))
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "hq_decoder_vs_reference.md").write_text(text)
    write_json(
        args.out / "hq_decoder_vs_reference.json",
        machine,
        [result.comparison],
        weights=str(model.weights),
        published_macs=PUBLISHED,
        result=result.json(),
    )


def main(argv: Sequence[str] | None = None) -> int:
    return ended(lambda: run(arguments(__doc__, argv)), refused=1)


if __name__ == "__main__":
    sys.exit(main())
