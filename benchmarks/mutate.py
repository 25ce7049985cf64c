"""Mutation testing of the passes: break their source one place at a time, and see whether the tests notice.

    python -m benchmarks.mutate [--file PATTERN] [--sample N | --share F] [--seed S] [--jobs J] [--timeout SECONDS]
                                [--list]

For every file of ``edgesam_deploy/passes`` its mirrored tests run against each mutant (``passes/aten/x.py`` ──
``tests/passes/aten/test_x.py`` or ``test_aten_x.py``; MORE names the others). A mutant that no test fails on survived.
Score = killed / mutants. Writes ``benchmarks/results/mutation.{md,json}``; files that a run left out keep their rows.

The sources and tests are copied first, so people may go on editing; the working tree is only read. A first run of the
unchanged file notes which statements each test reaches and how long it takes; a mutant then runs the tests that reach
it, the fastest first, until one fails. A mutant inside a function is a fork of a process that has the passes imported
and the tests collected, in which the functions get the code of the changed module; one that matters when the module is
imported is a fork of a parent that has only PyTorch, ONNX and pytest, and gets the module by an import hook. How:
``benchmarks/mutant_runs.py``. What is mutated: ``benchmarks/mutants.py``.
"""

from __future__ import annotations

import argparse
import compileall
import fnmatch
import hashlib
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.mutant_runs import KILLED, SURVIVED, TIMED_OUT, baseline, fates, warm_up
from benchmarks.mutants import mutants

ROOT = Path(__file__).parents[1]
PASSES = Path("edgesam_deploy/passes")
RESULTS = ROOT / "benchmarks" / "results"
LEAST = 3  # mutants of a file, however small the share
MORE = {  # tests beside the mirrored file, where a module is tested through another
    "engine.py": ("test_engine_proofs.py",),
    "execute.py": ("test_program.py", "test_engine.py"),
    "joint.py": ("test_hoist_image_side.py",),
    "correspondence.py": ("test_bisect.py",),
    "aten_view.py": ("test_bisect.py",),
    "onnx_view.py": ("test_bisect.py",),
    "aten/attention.py": ("aten/test_absorb_token_projections.py", "aten/test_canonicalize_cross_attention.py"),
    "aten/graph.py": ("aten/test_aten_eliminate_identity.py", "aten/test_fold_batch_norm.py"),
}


@dataclass
class Tally:
    """What became of the mutants of one file."""

    sha256: str
    tests: list[str]
    possible: int
    sample: int | None = None  # mutants drawn, None: all
    seed: int = 0
    mutants: int = 0
    killed: int = 0
    timed_out: int = 0
    seconds: float = 0.0
    survivors: list[str] | None = None
    broken: str = ""  # the tests fail on the unchanged file: nothing was measured

    @property
    def score(self) -> float:
        return (self.killed + self.timed_out) / self.mutants if self.mutants else 1.0


def measure(
    file: Path, *, sample: int | None, share: float, seed: int, jobs: int, timeout: int, only_list: bool, copied: Path
) -> Tally:
    """Run the mutants of one file of the copy."""
    source = (copied / file).read_text()
    every = mutants(source)
    sample = max(LEAST, math.ceil(share * len(every))) if sample is None and share < 1 else sample
    tests = mirrored_tests(file.relative_to(PASSES), copied)
    tally = Tally(hashlib.sha256(source.encode()).hexdigest(), tests, len(every), sample, seed, survivors=[])
    chosen = every
    if sample is not None and sample < len(every):
        chosen = random.Random(f"{seed} {file.name}").sample(every, sample)
        chosen.sort(key=lambda m: (m.line, m.column))
    if only_list:
        for mutant in chosen:
            print(f"{file}:{mutant.line}:{mutant.column}: {mutant.text}")
        return tally
    start = time.perf_counter()
    known = baseline(file, source, tests, timeout, copied) if tests else "no tests"
    if isinstance(known, str):
        tally.broken = known
        return tally
    ends = fates(file, chosen, tests, known, jobs, copied)
    tally.mutants, tally.killed, tally.timed_out = len(ends), ends.count(KILLED), ends.count(TIMED_OUT)
    tally.survivors = [f"{m.line}:{m.column}: {m.text}" for m, end in zip(chosen, ends, strict=True) if end == SURVIVED]
    tally.seconds = time.perf_counter() - start
    return tally


def mirrored_tests(file: Path, root: Path) -> list[str]:
    """Test files of ``file``, a path inside the passes, as paths inside ``root``."""
    folder = root / "tests" / "passes" / file.parent
    dialect = file.parent.name
    names = {f"test_{file.stem}.py", f"test_{dialect}_{file.stem}.py"}
    more = [folder.parent / t if file.parent.name else folder / t for t in MORE.get(file.as_posix(), ())]
    found = [path for path in (*(folder / name for name in sorted(names)), *more) if path.is_file()]
    return [str(path.relative_to(root)) for path in found]


# --- reporting -------------------------------------------------------------------------------------------------------


def write_report(tallies: dict[str, dict[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mutation.json").write_text(json.dumps(tallies, indent=1, sort_keys=True) + "\n")
    (folder / "mutation.md").write_text(markdown(tallies))


def markdown(tallies: dict[str, dict[str, Any]]) -> str:
    lines = ["# Mutation testing of the passes", "", *_summary(list(tallies.values())), ""]
    lines += [
        "| file | score | killed | of them timed out | mutants | of possible | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, t in sorted(tallies.items()):
        killed = t["killed"] + t["timed_out"]
        rate = "tests fail" if t["broken"] else (f"{killed / t['mutants']:.0%}" if t["mutants"] else "-")
        lines.append(
            f"| {name} | {rate} | {killed} | {t['timed_out']} | {t['mutants']} | {t['possible']} | {t['seconds']:.0f} |"
        )
    lines += ["", "## Survivors", ""]
    for name, t in sorted(tallies.items()):
        lines += [f"- `{name}:{survivor}`" for survivor in t["survivors"]]
    return "\n".join(lines) + "\n"


def _summary(tallies: list[dict[str, Any]]) -> list[str]:
    """The score, how sure it is, and of what it is a sample."""
    measured = [t for t in tallies if t["mutants"]]
    mutated = sum(t["mutants"] for t in measured)
    caught = sum(t["killed"] + t["timed_out"] for t in measured)
    possible = sum(t["possible"] for t in measured)
    if not measured:
        return ["**nothing measured**"]
    low, high = wilson(caught / mutated, mutated)
    weighted = sum((t["killed"] + t["timed_out"]) / t["mutants"] * t["possible"] for t in measured) / possible
    bottom, top = wilson(weighted, possible**2 / sum(t["possible"] ** 2 / t["mutants"] for t in measured))
    seeds = sorted({t["seed"] for t in measured})
    sampled = (
        f"The figures are of a sample of each file's mutants, drawn with seed {' or '.join(map(str, seeds))}. "
        "`python -m benchmarks.mutate` without `--sample` and `--share` runs all of them: CPU hours."
        if mutated < possible
        else "Every mutant of these files was run."
    )
    return [
        f"**{caught / mutated:.1%}**: {caught} of {mutated} mutants killed (95 % interval {low:.1%} to {high:.1%}), of "
        f"{possible} possible ones in {len(measured)} files. Each file weighted by its possible mutants: "
        f"**{weighted:.1%}** ({bottom:.1%} to {top:.1%}).",
        "",
        sampled,
        "",
        "Written by `make mutate` (`python -m benchmarks.mutate`; `benchmarks/mutants.py` says what is mutated). A "
        "file's row is of the day it was last run; seconds are of a machine that did other things too.",
    ]


def wilson(share: float, trials: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share; z = 1.96 for 95 %.

    ``trials`` of a weighted share: Kish's effective size, (sum of weights)^2 / sum of (weight^2 / trials of a stratum).
    """
    spread = z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = (share * (1 - share) * spread + spread * spread / 4) ** 0.5 / (1 + spread)
    return middle - half, middle + half


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.mutate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--file", default="*", help="shell pattern of paths inside passes/, e.g. 'aten/fold_*'")
    drawn = parser.add_mutually_exclusive_group()
    drawn.add_argument("--sample", type=int, help="mutants per file, drawn with the seed; default: all")
    drawn.add_argument("--share", type=float, default=1.0, help=f"of each file's mutants, 0 to 1, at least {LEAST}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--timeout",
        type=int,
        default=10,
        help="least CPU seconds per mutant; over four times what its tests take unchanged, it counts as killed",
    )
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    known = asked.out / "mutation.json"
    tallies: dict[str, dict[str, Any]] = json.loads(known.read_text()) if known.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        copied = Path(temporary)
        for part in ("edgesam_deploy", "tests", "pyproject.toml"):
            source = ROOT / part
            shutil.copytree(source, copied / part) if source.is_dir() else shutil.copy(source, copied / part)
        for part in ("edgesam_deploy", "tests"):
            compileall.compile_dir(copied / part, quiet=2)
        sys.path.insert(0, temporary)
        os.chdir(temporary)
        if not asked.list:
            warm_up()
        files = sorted(p.relative_to(copied) for p in (copied / PASSES).rglob("*.py") if p.name != "__init__.py")
        for file in files:
            name = file.relative_to(PASSES).as_posix()
            if not any(fnmatch.fnmatch(name, pattern) for pattern in asked.file.split(",")):
                continue
            tally = measure(
                file, sample=asked.sample, share=asked.share, seed=asked.seed, jobs=asked.jobs, timeout=asked.timeout,
                only_list=asked.list, copied=copied,
            )  # fmt: skip
            if asked.list:
                continue
            # another run may have written rows meanwhile
            tallies = json.loads(known.read_text()) if known.is_file() else {}
            tallies = {k: t for k, t in tallies.items() if (ROOT / PASSES / k).is_file()}
            tallies[name] = asdict(tally)
            write_report(tallies, asked.out)
            fate = tally.broken.strip().splitlines()[-1] if tally.broken else f"{tally.score:.0%} of {tally.mutants}"
            print(f"{name}: {fate} ({tally.seconds:.0f} s)", flush=True)
            for survivor in tally.survivors or ():
                print(f"    {survivor}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
