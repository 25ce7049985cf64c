"""What a build costs against the reference scripts' export with onnxsim behind it: seconds and memory.

    python -m benchmarks.build_cost [--rounds 3] [--image-size 1024] [--out benchmarks/results]

Both sides start in a process of their own, as users start them, and make encoder and decoder of the same seeded
``edge_sam``: the reference exports and simplifies them, ours is ``edgesam-deploy build --target onnx`` with its proofs
and with its parity on photographs. Between them stands PyTorch's current exporter, which ours is built on, with onnxsim
behind it: what no build by it can be below. They take turns; the figure is the median of the ratios of CPU time, since
a shared machine gives them unequal shares of wall time. Of ours, ``timings.json`` says what proof and parity took.
Writes ``build_cost.md`` and ``.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import edgesam_deploy as ed
from benchmarks.interleaved import Machine
from benchmarks.reference_export import PARTS, Part, example_inputs, export_reference, reference_module
from edgesam_deploy.errors import EdgeSamDeployError

EVERY = 0.05  # seconds between looks at a process
GOAL = 1.5  # of the reference's CPU seconds, and of its peak memory, at most
REFERENCE, OURS = "reference export + onnxsim", "edgesam-deploy build"
EXPORTER = "PyTorch's current exporter + onnxsim"


class BuildFailed(EdgeSamDeployError):
    """A side that did not end with 0."""


@dataclass(frozen=True)
class Cost:
    """One build: seconds by the clock and of CPU time, and peak memory in MB."""

    wall: float
    cpu: float
    peak_mb: float


def cost(words: Sequence[str]) -> Cost:
    """Of a program in a process of its own. Raises BuildFailed where it does not end with 0."""
    start, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors)
        ended = 0
        while not ended:  # the system's own peak of a child counts what its parent had when it was forked
            peak = max(peak, _peak_mb(process.pid))
            time.sleep(EVERY)
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read()
    if process.returncode:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise BuildFailed(f"{' '.join(words)} ended with {process.returncode}: {last}")
    return Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime, peak)


def _peak_mb(pid: int) -> float:
    """Greatest resident memory of a running process so far; 0 where it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def export_and_simplify(image_size: int, folder: Path, *, current: bool) -> None:
    """What a user of the reference scripts runs; ``current``: by the exporter that traces with torch.export."""
    import onnx
    import onnxsim

    model = ed.load("edge_sam", config={"image_size": image_size})
    for part in PARTS:
        path = folder / f"{part}.onnx"
        if current:
            _export_currently(model, part, path)
        else:
            export_reference(model, part, path, check=image_size == 1024)
        simplified, sound = onnxsim.simplify(onnx.load(path))
        if not sound:
            raise BuildFailed(f"onnxsim changed what {part} computes")
        onnx.save(simplified, path)


def _export_currently(model: ed.Sam, part: Part, path: Path) -> None:
    import torch

    inputs = example_inputs(model, part)
    with torch.no_grad():
        torch.onnx.export(
            reference_module(model, part), tuple(inputs.values()), path, dynamo=True, opset_version=18, verbose=False,
            input_names=list(inputs),
        )  # fmt: skip


def measure(image_size: int, rounds: int, folder: Path) -> tuple[dict[str, list[Cost]], dict[str, Any]]:
    """Costs by side, and the stages of our last build."""
    (folder / "size.json").write_text(json.dumps({"image_size": image_size}))
    here = [sys.executable, "-m"]
    sides = {
        REFERENCE: [*here, "benchmarks.build_cost", "--reference", str(folder), "--image-size", str(image_size)],
        EXPORTER: [*here, "benchmarks.build_cost", "--current", str(folder), "--image-size", str(image_size)],
        OURS: [*here, "edgesam_deploy", "build", "edge_sam", "--config", str(folder / "size.json"), "--overwrite",
               "--target", "onnx", "--out", str(folder / "ours")],
    }  # fmt: skip
    found: dict[str, list[Cost]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sorted(sides, reverse=bool(number % 2)):
            print(f"round {number + 1}: {name}", file=sys.stderr)
            found[name].append(cost(sides[name]))
    return found, json.loads((folder / "ours" / "timings.json").read_text())


def ratio(found: dict[str, list[Cost]], what: str, side: str = OURS) -> float:
    """Median over the rounds of ours, or another side's, over the reference's."""
    pairs = zip(found[side], found[REFERENCE], strict=True)
    return statistics.median(getattr(one, what) / getattr(theirs, what) for one, theirs in pairs)


def report(machine: Machine, image_size: int, found: dict[str, list[Cost]], stages: dict[str, Any]) -> str:
    """The Markdown file."""
    ratios = {what: ratio(found, what) for what in ("wall", "cpu", "peak_mb")}
    reached = "reached" if max(ratios["cpu"], ratios["peak_mb"]) <= GOAL else "missed"
    rows = [
        f"| {name} | {' | '.join(f'{statistics.median(getattr(c, what) for c in costs):.1f}' for what in ratios)} |"
        for name, costs in found.items()
    ]
    exporter = ""
    if EXPORTER in found:
        alone = ratio(found, "cpu", EXPORTER)
        exporter = (
            "\nOf the reference's CPU time the current exporter alone, without a pass, proof or comparison, takes "
            f"{alone:.2f}.\n"
        )
    spent = [f"{stage['stage']} {stage['seconds']:.1f}" for stage in stages["stages"] if stage["seconds"] > 0.05]
    proofs = sum(step["proof_seconds"] for step in stages["steps"])
    return "\n".join([
        "# What a build costs\n",
        f"{machine}\n",
        f"`edge_sam` at {image_size} pixels, for ONNX, {len(found[OURS])} builds of each side taking turns, each in a "
        "process of its own; medians. `python -m benchmarks.build_cost` writes this file.\n",
        f"CPU time {ratios['cpu']:.2f} and peak memory {ratios['peak_mb']:.2f} of the reference's with proof and "
        f"parity included, at most {GOAL} wanted: **{reached}**.\n",
        "| | seconds | CPU seconds | peak memory, MB |",
        "|---|---|---|---|",
        *rows,
        f"| ratio | {ratios['wall']:.2f} | {ratios['cpu']:.2f} | {ratios['peak_mb']:.2f} |",
        f"\nSeconds of our last build by stage: {', '.join(spent)}; of the passes {proofs:.1f} are proofs.\n{exporter}",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="builds of each side (default 3)")
    parser.add_argument("--image-size", type=int, default=1024, help="side of the model frame (default 1024)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    parser.add_argument("--reference", type=Path, help="only export and simplify into this folder, once")
    parser.add_argument("--current", type=Path, help="the same by PyTorch's current exporter")
    args = parser.parse_args(argv)
    try:
        alone = args.reference or args.current
        if alone is not None:
            export_and_simplify(args.image_size, alone, current=args.current is not None)
            return 0
        with tempfile.TemporaryDirectory() as name:
            found, stages = measure(args.image_size, args.rounds, Path(name))
    except EdgeSamDeployError as e:
        print(f"refused: {e}", file=sys.stderr)
        return 1
    machine = Machine.here(("onnxruntime", "onnx", "onnxsim", "torch", "numpy"))
    text = report(machine, args.image_size, found, stages)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "build_cost.md").write_text(text)
    content = {"machine": asdict(machine), "image_size": args.image_size, "timings": stages, "costs": {
        name: [asdict(c) for c in costs] for name, costs in found.items()
    }}  # fmt: skip
    (args.out / "build_cost.json").write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
