"""How this project measures latency: several ONNX Runtime sessions taking turns in one process.

A shared machine drifts by more than most rewrites gain, so absolute times from separate runs do not compare. Here every
round runs each session on the same inputs, in an order drawn anew, and yields one ratio to the baseline per session;
the median of the ratios is the result. The baseline is loaded twice: the second copy's ratio (A/A) should be 1, and
where its median leaves 1 +- 0.05 the machine was too busy and the comparison has no verdict. CPU time stands beside
wall time, since it suffers less from other processes.

    baseline ── ours ── A/A        round 1 -> ratios
    ours ── A/A ── baseline        round 2 -> ratios        median and quartiles over the rounds
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgesam_deploy.devices.runner import cpu_model
from edgesam_deploy.errors import EdgeSamDeployError

AGAIN = "baseline again (A/A)"
AGAIN_TOLERANCE = 0.05
STARVED = 0.85  # of the threads' number: with the machine to itself the baseline's CPU time is 0.97 of wall x threads
SETTLE_SECONDS = 0.005  # idle threads of the session before spin for about 1 ms: let them go to sleep first
Arrays = Mapping[str, NDArray[Any]]
Call = Callable[[int], Any]  # something to time, told the number of the round


@dataclass(frozen=True)
class Candidate:
    """A file to measure. ``disabled_optimizers`` are graph optimisers of ONNX Runtime by name; default options else."""

    name: str
    path: Path
    disabled_optimizers: tuple[str, ...] = ()

    def session(self, threads: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(
            str(self.path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(self.disabled_optimizers),
        )

    def call(self, inputs: Arrays, threads: int) -> Call:
        """One run in a session of its own, on those of ``inputs`` that the file takes."""
        session = self.session(threads)
        own = {i.name: inputs[i.name] for i in session.get_inputs()}
        return lambda _: session.run(None, own)


@dataclass(frozen=True)
class Ratio:
    """Median over rounds of (candidate's time / baseline's time of the same round), and the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}-{self.high:.3f})"

    @classmethod
    def of(cls, candidate: Sequence[float], baseline: Sequence[float]) -> Ratio:
        low, median, high = np.quantile(np.divide(candidate, baseline), [0.25, 0.5, 0.75])
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class Row:
    """One session: median milliseconds of a call, and the ratios to the baseline, by wall clock and by CPU time."""

    name: str
    wall_ms: float
    cpu_ms: float
    wall: Ratio
    cpu: Ratio


@dataclass(frozen=True)
class Comparison:
    """What one interleaved run found. ``rows`` start with the baseline and its second copy."""

    subject: str
    threads: int
    rounds: int
    calls: int
    rows: tuple[Row, ...]
    load_before: float
    load_after: float

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    @property
    def again(self) -> Row:
        """The baseline's second copy."""
        return self[AGAIN]

    @property
    def trusted(self) -> bool:
        """Whether the baseline's second copy took as long as the first, by wall clock."""
        return abs(self.again.wall.median - 1) <= AGAIN_TOLERANCE

    @property
    def cpu_trusted(self) -> bool:
        """The same by CPU time."""
        return abs(self.again.cpu.median - 1) <= AGAIN_TOLERANCE

    @property
    def cores(self) -> float:
        """Cores that the baseline had on average: well under ``threads`` where others kept them busy."""
        baseline = self.rows[0]
        return baseline.cpu_ms / baseline.wall_ms

    @property
    def starved(self) -> bool:
        """Whether the threads had to share cores, so that the figures are those of fewer threads."""
        return self.cores < STARVED * self.threads

    def verdict(self, name: str, goal: float) -> str:
        """``reached`` where the median wall ratio of ``name`` is at most ``goal``, ``missed``, or ``no verdict``."""
        if not self.trusted:
            return "no verdict"
        return "reached" if self[name].wall.median <= goal else "missed"

    def markdown(self) -> str:
        """The rows as a table under a line with the circumstances."""
        title = (
            f"**{self.subject}**, {self.threads} thread(s), {self.rounds} rounds of {self.calls} call(s), "
            f"load average {self.load_before:.1f} before and {self.load_after:.1f} after"
        )
        if not self.trusted:
            title += f"; **no verdict**: A/A leaves 1 +- {AGAIN_TOLERANCE}"
        if self.starved:
            title += f"; the threads got {self.cores:.1f} cores: read the figures as those of fewer threads"
        lines = [
            title,
            "",
            "| file | wall ms | wall ratio (quartiles) | CPU ms | CPU ratio (quartiles) |",
            "|---|---|---|---|---|",
            *(f"| {r.name} | {r.wall_ms:.1f} | {r.wall} | {r.cpu_ms:.1f} | {r.cpu} |" for r in self.rows),
        ]
        return "\n".join(lines) + "\n"


def compare(
    subject: str,
    baseline: Candidate,
    candidates: Sequence[Candidate],
    inputs: Arrays,
    *,
    threads: int = 2,
    rounds: int = 15,
    warmup: int = 3,
    calls: int = 1,
    seed: int = 0,
) -> Comparison:
    """Measure ``candidates`` against ``baseline`` on the same ``inputs`` (by name; each file takes those it has).

    A round times ``calls`` calls of each session in shuffled order. Raises ValueError for fewer than one round, and
    for two candidates of one name.
    """
    _check(rounds, calls)
    files = [baseline, replace(baseline, name=AGAIN), *candidates]
    names = [file.name for file in files]
    if len(set(names)) != len(names):
        raise ValueError(f"candidates need names of their own: {names}")
    return compare_calls(
        subject,
        {file.name: file.call(inputs, threads) for file in files},
        threads=threads,
        rounds=rounds,
        warmup=warmup,
        calls=calls,
        seed=seed,
    )


def compare_calls(
    subject: str,
    callables: Mapping[str, Call],
    *,
    threads: int = 2,
    rounds: int = 15,
    warmup: int = 3,
    calls: int = 1,
    seed: int = 0,
) -> Comparison:
    """Measure anything that can be called, by name: the first is the baseline, ``AGAIN`` its second copy.

    A round times ``calls`` calls of each in shuffled order; all are told its number, ``warmup`` calls are told 0.
    ``threads`` is what they were made with. Raises ValueError for fewer than one round, and without a second copy.
    """
    _check(rounds, calls)
    if AGAIN not in callables:
        raise ValueError(f"a comparison needs {AGAIN!r} to be trusted")
    for call in callables.values():
        for _ in range(warmup):
            call(0)
    load_before = os.getloadavg()[0]
    wall, cpu = _rounds(callables, rounds, calls, random.Random(seed))
    baseline = next(iter(callables))
    rows = tuple(
        Row(
            name,
            float(np.median(wall[name])),
            float(np.median(cpu[name])),
            Ratio.of(wall[name], wall[baseline]),
            Ratio.of(cpu[name], cpu[baseline]),
        )
        for name in callables
    )
    return Comparison(subject, threads, rounds, calls, rows, load_before, os.getloadavg()[0])


def _check(rounds: int, calls: int) -> None:
    if rounds < 1 or calls < 1:
        raise ValueError(f"rounds {rounds} and calls {calls} must be at least 1")


def _rounds(
    callables: Mapping[str, Call], rounds: int, calls: int, order: random.Random
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds per call by name and round, wall clock and CPU time of the whole process."""
    wall: dict[str, list[float]] = {name: [] for name in callables}
    cpu: dict[str, list[float]] = {name: [] for name in callables}
    for number in range(rounds):
        for name in order.sample(list(callables), len(callables)):
            time.sleep(SETTLE_SECONDS)
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(calls):
                callables[name](number)
            cpu[name].append((time.process_time() - cpu_start) * 1e3 / calls)
            wall[name].append((time.perf_counter() - wall_start) * 1e3 / calls)
    return wall, cpu


def arguments(doc: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a benchmark that measures built parts against an export; ``doc`` starts with its one line."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--threads", type=int, default=2, help="intra-op threads of every session (default 2)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    parser.add_argument("--bundle", type=Path, help="folder with encoder.onnx and decoder.onnx, instead of building")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", help="weights of both sides (default: seeded)")
    weights.add_argument("--seed", type=int, help="seed of both sides' weights (default 0)")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Machine:
    """Where and with what a figure was measured; nothing that names the computer or its user."""

    cpu: str
    cores: int
    date: str
    system: str
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls, packages: Sequence[str] = ("onnxruntime", "onnx", "torch", "numpy")) -> Machine:
        return cls(
            cpu=cpu_model(),
            cores=os.cpu_count() or 1,
            date=datetime.now(UTC).date().isoformat(),
            system=f"{platform.system()} {platform.machine()}",
            versions={"python": platform.python_version(), **{p: version(p) for p in packages}},
        )

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.cpu}, {self.cores} core(s), {self.system}, {self.date}; {versions}"


def ended(run: Callable[[], None], refused: int | None = None) -> int:
    """Exit code of a benchmark: 0 where it ran; where it was refused, which is said, ``refused`` or the error's own."""
    try:
        run()
    except EdgeSamDeployError as e:
        print(f"refused: {e}", file=sys.stderr)
        return e.exit_code if refused is None else refused
    return 0


def write_json(path: Path, machine: Machine, comparisons: Sequence[Comparison], **more: Any) -> None:
    """Write the figures, the machine and whatever else belongs to them as JSON."""
    data = {"machine": asdict(machine), **more, "comparisons": [describe(c) for c in comparisons]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")


def describe(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON-ready data, with what it says about itself."""
    return {
        **asdict(comparison),
        "trusted": comparison.trusted,
        "cpu_trusted": comparison.cpu_trusted,
        "cores": comparison.cores,
        "starved": comparison.starved,
    }
