"""Our .tflite files against the plain conversion of the reference's modules, interleaved, on this CPU.

    python -m benchmarks.tflite_vs_plain [--rounds 15] [--threads 2] [--bundle FOLDER] [--out benchmarks/results]

Plain: the reference's modules with the weights of ``edge_sam``, depthwise branches merged by hand, a bilinear neck, as
``litert_torch.convert`` makes of them. Ours: ``edge_sam`` built for ``tflite`` with 5 slots and a bicubic neck, in
fp32 and dynamic int8. The reference's export in ONNX Runtime runs in the same rounds, with as many threads. A goal is
judged by wall clock where the plain conversion's second copy took as long as its first, else there is no verdict; CPU
time stands beside it. ``--bundle``: a folder with bundles ``fp32`` and ``int8`` (5 slots) instead of building them.

Writes ``tflite_vs_plain.md`` and ``.json``. Exit code 0 when measured, whatever the figures; 1 when refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import edgesam_deploy as ed
from benchmarks.interleaved import Candidate, Comparison, Machine, arguments, compare, ended, write_json
from benchmarks.reference_export import OUTPUTS, PARTS, Part, example_inputs, export_reference, reference_module
from edgesam_deploy.model.layers import ConvNorm
from edgesam_deploy.model.repvit import RepVggDw
from edgesam_deploy.targets.quiet import quiet
from edgesam_deploy.targets.tflite import flatbuffer
from edgesam_deploy.targets.tflite.toolkits import resolve_converter, runtime

POINTS = 5
PLAIN, OURS, SMALL, ORT = "plain conversion", "edgesam-deploy fp32", "edgesam-deploy dynamic int8", "reference in ORT"
BUNDLES = {"fp32": "fp32", "int8": "dynamic-int8"}  # folder -> precision
SIGNATURES: dict[Part, str] = {"encoder": "encode", "decoder": f"decode_{POINTS}"}
CALLS: dict[Part, int] = {"encoder": 1, "decoder": 3}
OPERATORS: dict[Part, int] = {"encoder": 225, "decoder": 284}  # at most
# of the first one's time the second one's, at most
GOALS: dict[Part, tuple[tuple[str, str, float], ...]] = {
    "encoder": ((PLAIN, OURS, 1.0), (ORT, OURS, 0.85)),
    "decoder": ((PLAIN, OURS, 0.9), (PLAIN, SMALL, 0.6)),
}


@dataclass(frozen=True)
class TfliteCandidate(Candidate):
    """A .tflite file, run through its one signature of that name."""

    signature: str = ""

    def session(self, threads: int) -> Any:
        interpreter = runtime()[0](model_path=str(self.path), num_threads=threads)
        return TfliteSession(interpreter, interpreter.get_signature_runner(self.signature))


class TfliteSession:
    """What the interleaved rounds want of a session. ``interpreter`` keeps the weights alive."""

    def __init__(self, interpreter: Any, runner: Any) -> None:
        self.interpreter, self.runner = interpreter, runner

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in self.runner.get_input_details()]

    def run(self, _: None, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs: dict[str, NDArray[Any]] = self.runner(**feeds)
        return outputs


def folded(layer: ConvNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its batch norm folded in."""
    convolution, norm = layer.c, layer.bn
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def merged_by_hand(module: nn.Module) -> nn.Module:
    """``module`` with every depthwise pair of RepViT as one convolution, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RepVggDw):
                (weight, bias), (small, more) = folded(child.conv), folded(child.conv1)
                whole = weight + F.pad(small, (1, 1, 1, 1))
                whole[:, 0, 1, 1] += 1
                channels = whole.shape[0]
                convolution = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
                convolution.weight.data, convolution.bias.data = whole.detach(), (bias + more).detach()  # type: ignore[union-attr]
                setattr(parent, name, convolution)
    return module


class Named(nn.Module):
    """A part whose outputs have names, which become those of the signature."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        results = self.module(*inputs.values())
        return dict(zip(self.names, results if isinstance(results, tuple) else (results,), strict=True))


def convert_plainly(model: ed.Sam, part: Part, path: Path) -> Path:
    """The plain conversion of a part."""
    module = Named(merged_by_hand(reference_module(model, part)), OUTPUTS[part]).eval()
    with quiet("converting the baseline"), torch.no_grad():
        converter = resolve_converter().signature(SIGNATURES[part], module, sample_kwargs=example_inputs(model, part))
        path.write_bytes(converter.convert().model_content())
    return path


@dataclass(frozen=True)
class Result:
    """One part: what was measured, operators and bytes by file."""

    part: Part
    comparison: Comparison
    operators: dict[str, int]
    megabytes: dict[str, float]
    difference: float  # relative L2 between ours in fp32 and plain

    def ratios(self, base: str, name: str) -> tuple[float, float]:
        """Median time of ``name`` over ``base``'s by wall clock and by CPU time, both as ratios to the plain
        conversion of the same rounds.
        """
        ours, theirs = self.comparison[name], self.comparison[base]
        return ours.wall.median / theirs.wall.median, ours.cpu.median / theirs.cpu.median

    def verdict(self, base: str, name: str, goal: float) -> str:
        """By wall clock: ``reached``, ``missed``, or ``no verdict`` on a machine that was too busy."""
        if not self.comparison.trusted:
            return "no verdict"
        return "reached" if self.ratios(base, name)[0] <= goal else "missed"

    def sentences(self) -> list[str]:
        """A line per goal, and one on operators."""
        lines = []
        for base, name, goal in GOALS[self.part]:
            wall, cpu = self.ratios(base, name)
            lines.append(
                f"{self.part}: {name} takes {wall:.3f} of {base} by wall clock, {cpu:.3f} by CPU time; goal {goal}: "
                f"**{self.verdict(base, name, goal)}**"
            )
        count = self.operators[OURS]
        verdict = "reached" if count <= OPERATORS[self.part] else "missed"
        lines.append(
            f"{self.part}: {count} operators, plain {self.operators[PLAIN]}; goal {OPERATORS[self.part]}: **{verdict}**"
        )
        return lines

    def table(self) -> str:
        rows = [f"| {n} | {self.operators[n]} | {self.megabytes[n]:.2f} |" for n in self.operators]
        return "\n".join(["| file | operators | MB |", "|---|---|---|", *rows])


def measure(model: ed.Sam, part: Part, folder: Path, bundles: Path, *, rounds: int, threads: int) -> Result:
    """Convert the baselines of a part into ``folder`` and run them against the files in ``bundles``."""
    signature = SIGNATURES[part]
    plain = TfliteCandidate(PLAIN, convert_plainly(model, part, folder / f"plain_{part}.tflite"), signature=signature)
    ours = TfliteCandidate(OURS, bundles / "fp32" / f"{part}.tflite", signature=signature)
    small = TfliteCandidate(SMALL, bundles / "int8" / f"{part}.tflite", signature=signature)
    reference = Candidate(ORT, export_reference(model, part, folder / f"reference_{part}.onnx"))
    inputs = {name: value.numpy() for name, value in example_inputs(model, part, POINTS).items()}
    apart = outputs_apart(plain, ours, inputs, OUTPUTS[part][-1])
    compared = compare(part, plain, [ours, small, reference], inputs, threads=threads, rounds=rounds, calls=CALLS[part])
    files = (plain, ours, small)
    counts = {f.name: flatbuffer.operators(flatbuffer.parse(f.path.read_bytes())).total() for f in files}
    return Result(part, compared, counts, {f.name: f.path.stat().st_size / 1e6 for f in files}, apart)


def outputs_apart(plain: TfliteCandidate, ours: TfliteCandidate, inputs: dict[str, NDArray[Any]], output: str) -> float:
    """Relative L2 between the two files' ``output``."""
    a, b = (candidate.session(1).run(None, inputs)[output] for candidate in (plain, ours))
    return float(np.linalg.norm(b - a) / np.linalg.norm(a))


def report(machine: Machine, results: Sequence[Result], weights: str) -> str:
    """The Markdown file."""
    lines = ["# TFLite files against the plain conversion\n", f"{machine}\n"]
    lines.append(
        f"Weights: {weights}. Ratios are medians over interleaved rounds; see `benchmarks/interleaved.py`. The plain "
        "encoder has a bilinear neck, ours the bicubic one of the checkpoint.\n"
    )
    for result in results:
        lines += [result.comparison.markdown(), result.table() + "\n"]
        lines += [f"{sentence}\n" for sentence in result.sentences()]
        lines.append(f"{result.part}: outputs {result.difference:.1e} apart in relative L2\n")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    """Build, convert, measure, write."""
    model = ed.load("edge_sam", checkpoint=args.checkpoint, seed=args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = args.bundle or folder
        if args.bundle is None:
            for place, precision in BUNDLES.items():
                print(f"building {precision}", file=sys.stderr)
                ed.build(model, target="tflite", out=folder / place, points=POINTS, precision=precision)
        results = []
        for part in PARTS:
            print(f"{part}: converting the baseline, then {args.rounds} rounds", file=sys.stderr)
            results.append(measure(model, part, folder, bundles, rounds=args.rounds, threads=args.threads))
    machine = Machine.here(("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "onnxruntime", "torch", "numpy"))
    text = report(machine, results, str(model.weights))
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "tflite_vs_plain.md").write_text(text)
    write_json(
        args.out / "tflite_vs_plain.json",
        machine,
        [result.comparison for result in results],
        weights=str(model.weights),
        operators={r.part: r.operators for r in results},
        megabytes={r.part: r.megabytes for r in results},
        goals=[
            {
                "part": r.part,
                "file": name,
                "of": base,
                "at_most": goal,
                "wall": r.ratios(base, name)[0],
                "cpu": r.ratios(base, name)[1],
                "verdict": r.verdict(base, name, goal),
            }
            for r in results
            for base, name, goal in GOALS[r.part]
        ],
    )


def main(argv: Sequence[str] | None = None) -> int:
    return ended(lambda: run(arguments(__doc__, argv)), refused=1)


if __name__ == "__main__":
    sys.exit(main())
