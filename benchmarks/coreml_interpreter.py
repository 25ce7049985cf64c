"""Seconds that executing an EdgeSAM .mlpackage takes on this CPU: python -m benchmarks.coreml_interpreter.

    [--bundle DIR] [--rounds 5] [--out benchmarks/results]

Takes encoder.mlpackage and decoder.mlpackage of a bundle, or emits both parts of ``edge_sam`` (seeded weights) by the
target's defaults. Wall and CPU seconds of one call, medians of the rounds after a first
one that does not count, for both modes; seconds of the operators that take longest. How many threads: OMP_NUM_THREADS.
Writes ``coreml_interpreter.{md,json}``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgesam_deploy as ed
from benchmarks.interleaved import Machine, ended, write_json
from edgesam_deploy.capture import capture
from edgesam_deploy.contract import IMAGE_ENCODER
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.coreml.interpreter import MODES, Mode, Model, open_mlpackage
from edgesam_deploy.targets.coreml.interpreter.numerics import thread_count

PARTS = ("encoder", "decoder")
ATTAINABLE = {"encoder": 4.0, "decoder": 2.0}  # seconds on two idle cores
SHOWN = 6  # operators


@dataclass(frozen=True)
class Result:
    """Seconds of one part in one mode; ``slowest``: wall seconds by operator, the longest first."""

    part: str
    mode: Mode
    operations: int
    opening: float
    wall: float
    cpu: float
    slowest: dict[str, float]


def emit_edge_sam(folder: Path) -> Path:
    """Both parts of ``edge_sam`` with seeded weights as the target writes them by default, in ``folder``."""
    model, target = ed.load("edge_sam", seed=0), make_target("coreml")
    interface = target.interface(model.config)
    about = dict.fromkeys(("model", "part", "license", "edgesam_deploy_version"), "a benchmark")
    for program in capture(model, interface):
        name = "encoder" if program.name == IMAGE_ENCODER else "decoder"
        done = Engine(proof="off").run(program, target.pipeline(model.config))
        target.emit(done, interface, folder / f"{name}.mlpackage", about)
    return folder


def inputs_of(model: Model) -> dict[str, NDArray[np.float32]]:
    """Seeded inputs: points inside the picture, everything else normal."""
    rng = np.random.default_rng(0)
    found = {}
    for name, kind in model.inputs.items():
        values: NDArray[Any] = rng.standard_normal(kind.fixed_shape)
        if name == "point_coords":
            values = rng.uniform(0, 1023, kind.fixed_shape)
        elif name == "point_labels":
            values = rng.integers(0, 2, kind.fixed_shape)
        found[name] = values.astype(np.float32)
    return found


def measure(part: str, path: Path, mode: Mode, rounds: int) -> Result:
    start = time.perf_counter()
    model = open_mlpackage(path, mode=mode)
    opening = time.perf_counter() - start
    inputs = inputs_of(model)
    model(inputs)
    wall, cpu = [], []
    by_operator: Counter[str] = Counter()
    for _ in range(rounds):
        start, busy = time.perf_counter(), time.process_time()
        model.run(inputs, watch=lambda op, seconds: by_operator.update({op.kind: seconds}))
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    slowest = {kind: seconds / rounds for kind, seconds in by_operator.most_common(SHOWN)}
    return Result(part, mode, model.operators().total(), opening, median(wall), median(cpu), slowest)


def report(machine: Machine, results: Sequence[Result]) -> str:
    """The Markdown file."""
    rows = [
        f"| {r.part} | {r.mode} | {r.operations} | {r.opening:.2f} | {r.wall:.2f} | {r.cpu:.2f} | "
        f"{', '.join(f'{kind} {seconds:.2f}' for kind, seconds in r.slowest.items())} |"
        for r in results
    ]
    return "\n".join(
        [
            "# Executing an EdgeSAM .mlpackage on a CPU\n",
            f"{machine}; {thread_count()} thread(s)\n",
            "Seconds of one call: the interpreter of this project, NumPy and SciPy alone.\n",
            "| part | mode | operations | opening | wall | CPU | of it, by operator (wall) |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="folder with encoder.mlpackage and decoder.mlpackage")
    parser.add_argument("--rounds", type=int, default=5, help="calls that count (default 5)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = args.bundle or emit_edge_sam(Path(name))
        results = [measure(p, folder / f"{p}.mlpackage", mode, args.rounds) for p in PARTS for mode in MODES]
    machine = Machine.here(("numpy", "scipy", "coremltools"))
    text = report(machine, results)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "coreml_interpreter.md").write_text(text)
    write_json(
        args.out / "coreml_interpreter.json",
        machine,
        [],
        threads=thread_count(),
        attainable=ATTAINABLE,
        parts=[asdict(result) for result in results],
    )


def main(argv: Sequence[str] | None = None) -> int:
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
