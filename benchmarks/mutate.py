"""Mutation testing of the passes: break their source one place at a time, and see whether the tests notice.

    python -m benchmarks.mutate [--file PATTERN] [--sample N] [--seed S] [--jobs J] [--timeout SECONDS] [--list]

For every file of ``edgesam_deploy/passes`` its mirrored tests run against each mutant (``passes/aten/x.py`` ──
``tests/passes/aten/test_x.py`` or ``test_aten_x.py``; MORE names the others). A mutant that no test fails on survived.
Score = killed / mutants. Writes ``benchmarks/results/mutation.{md,json}``; files that a run left out keep their rows.

The sources and tests are copied first, so people may go on editing; the working tree is only read. A mutant is a fork
of a parent that has PyTorch, ONNX and pytest imported, and an import hook gives it one changed module. A first run of
the unchanged file notes which statements each test reaches and how long it takes; a mutant then runs the tests that
reach it, the fastest first, until one fails: about a second each. What is mutated: ``benchmarks/mutants.py``.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import compileall
import fnmatch
import gc
import hashlib
import importlib.util
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mutants import Mutant, mutants, probed

ROOT = Path(__file__).parents[1]
PASSES = Path("edgesam_deploy/passes")
RESULTS = ROOT / "benchmarks" / "results"
MORE = {  # tests beside the mirrored file, where a module is tested through another
    "engine.py": ("test_engine_proofs.py",),
    "execute.py": ("test_program.py", "test_engine.py"),
    "joint.py": ("test_hoist_image_side.py",),
    "correspondence.py": ("test_bisect.py",),
    "aten_view.py": ("test_bisect.py",),
    "onnx_view.py": ("test_bisect.py",),
    "aten/graph.py": ("aten/test_aten_eliminate_identity.py", "aten/test_fold_batch_norm.py"),
}
GIB = 1 << 30
PROBE = "_edgesam_mutation_reached"
KILLED, SURVIVED, TIMED_OUT, INTERRUPTED = "killed", "survived", "timed out", "interrupted"
OUTSIDE = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP)  # not of the test's doing: run it again
NO_TESTS = 5  # pytest's exit code where a mutant leaves no test to run


@dataclass
class Tally:
    """What became of the mutants of one file."""

    sha256: str
    tests: list[str]
    possible: int
    sample: int | None = None  # mutants asked for, None: all
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


# --- running ---------------------------------------------------------------------------------------------------------


class Changed(SourceFileLoader, MetaPathFinder):
    """Imports one module from a changed tree, under its own name and path."""

    def __init__(self, fullname: str, path: str, tree: ast.Module) -> None:
        super().__init__(fullname, path)
        self.tree = tree

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return (
            importlib.util.spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None
        )

    def get_code(self, fullname: str) -> Any:
        return compile(self.tree, self.path, "exec")


def warm_up() -> None:
    """Import, in the parent, whatever is slow to import, but nothing of the passes."""
    import hypothesis
    import onnx.reference  # noqa: F401
    import onnx_ir.passes.common  # noqa: F401
    import onnxruntime  # noqa: F401 - no session: its threads would not survive a fork
    import torch

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they cost each mutant half a second

    torch.set_num_threads(1)
    search = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # the smallest example would take most of the time
    hypothesis.settings.register_profile(
        "mutate", derandomize=True, database=None, phases=search, report_multiple_bugs=False, deadline=None
    )
    hypothesis.settings.load_profile("mutate")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    example = (torch.ones(1),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(torch.nn.ReLU(), example, strict=False)
        torch.onnx.export(exported, dynamo=True, verify=False, verbose=False)
    import edgesam_deploy.contract
    import edgesam_deploy.cost
    import edgesam_deploy.model.registry  # noqa: F401

    loaded = [name for name in sys.modules if name.startswith("edgesam_deploy.passes")]
    assert not loaded, f"imported too early: {loaded}"
    gc.freeze()  # a fork need not look through what the parent holds


@dataclass
class Recorder:
    """pytest plugin for the unchanged file: which statements each test reaches, and its seconds.

    What is reached outside the tests' own calls (collection, fixtures that several share) counts for each of them.
    """

    file: Path
    reached: set[int] = field(default_factory=set)
    shared: set[int] = field(default_factory=set)
    tests: dict[str, tuple[float, list[int]]] = field(default_factory=dict)

    def pytest_runtest_setup(self, item: Any) -> None:
        self.reached.clear()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Any:
        self.shared |= self.reached
        self.reached.clear()
        start = time.perf_counter()
        try:
            return (yield)
        finally:
            self.tests[item.nodeid] = time.perf_counter() - start, sorted(self.reached)

    def pytest_collection_finish(self) -> None:
        self.shared |= self.reached

    def pytest_sessionfinish(self) -> None:
        self.file.write_text(json.dumps([sorted(self.shared), self.tests]))


@dataclass
class Chosen:
    """pytest plugin for a mutant: the tests that reach it, the fastest first; the first failure ends the process."""

    order: list[str]
    known: set[str]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        rank = {name: index for index, name in enumerate(self.order)}
        run = [item for item in items if item.nodeid in rank or item.nodeid not in self.known]
        items[:] = sorted(run, key=lambda item: rank.get(item.nodeid, len(rank)))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            os._exit(1)


@dataclass(frozen=True)
class Baseline:
    """The tests of a file on the unchanged source."""

    shared: frozenset[int]
    tests: dict[str, tuple[float, list[int]]]  # seconds and lines by test
    limit: int  # CPU seconds that a mutant gets

    def reaching(self, line: int) -> list[str]:
        """The tests that reach a statement, the fastest first."""
        everyone = line == 0 or line in self.shared
        reach = [(seconds, name) for name, (seconds, lines) in self.tests.items() if everyone or line in lines]
        return [name for _, name in sorted(reach)]


def baseline(file: Path, source: str, tests: list[str], timeout: int, copied: Path) -> Baseline | str:
    """What the tests do on the unchanged file, or the end of their output if they fail."""
    log, notes = copied / "baseline.log", copied / "baseline.json"
    recorder = Recorder(notes)
    setattr(builtins, PROBE, recorder.reached.add)
    child = os.fork()
    if child == 0:
        _be_tested(tests, Changed(_module(file), str(copied / file), probed(source, PROBE)), recorder, 0, log)
    _, status, usage = os.wait4(child, 0)
    if _fate(status) != SURVIVED:
        return log.read_text()[-600:] or "the tests die"
    shared, known = json.loads(notes.read_text())
    return Baseline(frozenset(shared), known, max(timeout, round(4 * (usage.ru_utime + usage.ru_stime))))


def _module(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def _fate(status: int) -> str:
    if os.WIFSIGNALED(status):
        by = os.WTERMSIG(status)
        return INTERRUPTED if by in OUTSIDE else TIMED_OUT if by in (signal.SIGXCPU, signal.SIGALRM) else KILLED
    return SURVIVED if os.WEXITSTATUS(status) in (0, NO_TESTS) else KILLED


def _be_tested(tests: Sequence[str], changed: Changed, plugin: object, limit: int, log: Path | None) -> None:
    """In the child: never returns. ``limit``: CPU seconds, so that a busy machine kills nothing; 0 is none."""
    code = 1
    try:
        if limit:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            signal.alarm(30 * limit)  # for one that waits; its default action ends the process, in C++ too
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 6 * GIB,) * 2)
        output = os.open(os.devnull if log is None else log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.meta_path.insert(0, changed)
        options = [
            "-x",
            "-q",
            "--assert=plain",
            "--no-header",
            "-W",
            "ignore",
            "--tb=no" if log is None else "--tb=short",
        ]
        options += [f"-pno:{name}" for name in ("cacheprovider", "unraisableexception", "threadexception")]
        code = int(pytest.main([*options, *tests], [plugin]))
    finally:
        os._exit(code)


def measure(
    file: Path, *, sample: int | None, seed: int, jobs: int, timeout: int, only_list: bool, copied: Path
) -> Tally:
    """Run the mutants of one file of the copy."""
    source = (copied / file).read_text()
    every = mutants(source)
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
    running: dict[int, Mutant] = {}
    queue = list(reversed(chosen))
    while queue or running:
        while queue and len(running) < jobs:
            mutant = queue.pop()
            order = known.reaching(mutant.statement)
            if not order:
                _record(tally, mutant, SURVIVED)
                continue
            child = os.fork()
            if child == 0:
                plugin = Chosen(order, set(known.tests))
                changed = Changed(_module(file), str(copied / file), mutant.tree)
                _be_tested(sorted({name.split("::")[0] for name in order}), changed, plugin, known.limit, None)
            running[child] = mutant
        if running:
            child, status = os.wait()
            mutant, fate = running.pop(child), _fate(status)
            if fate == INTERRUPTED:
                queue.append(mutant)
            else:
                _record(tally, mutant, fate)
    tally.seconds = time.perf_counter() - start
    return tally


def _record(tally: Tally, mutant: Mutant, fate: str) -> None:
    assert tally.survivors is not None
    tally.mutants += 1
    tally.killed += fate == KILLED
    tally.timed_out += fate == TIMED_OUT
    if fate == SURVIVED:
        tally.survivors.append(f"{mutant.line}:{mutant.column}: {mutant.text}")


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
    low, high = wilson(caught, mutated)
    weighted = sum((t["killed"] + t["timed_out"]) / t["mutants"] * t["possible"] for t in measured) / possible
    samples = sorted({t["sample"] for t in measured if t["mutants"] < t["possible"] and t["sample"]})
    seeds = sorted({t["seed"] for t in measured})
    sampled = (
        f"The figures are of a sample: at most {' or '.join(map(str, samples))} mutants of each file, drawn with seed "
        f"{' or '.join(map(str, seeds))}. `python -m benchmarks.mutate` without `--sample` runs all of them: CPU hours."
        if samples
        else "Every mutant of these files was run."
    )
    return [
        f"**{caught / mutated:.1%}**: {caught} of {mutated} mutants killed (95 % interval {low:.1%} to {high:.1%}), of "
        f"{possible} possible ones in {len(measured)} files. Each file weighted by its possible mutants: "
        f"{weighted:.1%}.",
        "",
        sampled,
        "",
        "Written by `make mutate` (`python -m benchmarks.mutate`; `benchmarks/mutants.py` says what is mutated). A "
        "file's row is of the day it was last run; seconds are of a machine that did other things too.",
    ]


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share; z = 1.96 for 95 %."""
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = (share * (1 - share) * spread + spread * spread / 4) ** 0.5 / (1 + spread)
    return middle - half, middle + half


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.mutate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--file", default="*", help="shell pattern of paths inside passes/, e.g. 'aten/fold_*'")
    parser.add_argument("--sample", type=int, help="mutants per file, drawn with the seed; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--timeout",
        type=int,
        default=20,
        help="least CPU seconds per mutant; over four times what the unchanged file takes, it counts as killed",
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
                file, sample=asked.sample, seed=asked.seed, jobs=asked.jobs, timeout=asked.timeout,
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
