"""Running the tests of a file on its mutants, each in a fork of a process that has imported what is slow to import."""

from __future__ import annotations

import ast
import builtins
import gc
import importlib
import importlib.util
import json
import logging
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from itertools import zip_longest
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

from benchmarks.mutants import Mutant, probed

GIB = 1 << 30
PROBE = "_edgesam_mutation_reached"
KILLED, SURVIVED, TIMED_OUT, INTERRUPTED, UNFIT = "killed", "survived", "timed out", "interrupted", "unfit"
OUTSIDE = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP)  # not of the test's doing: run it again
NO_TESTS = 5  # pytest's exit code where a mutant leaves no test to run
NOT_IN_PLACE = 77  # exit code where the functions that exist cannot take the changed code


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
    """pytest plugin for the unchanged file: which statements each test reaches, and its CPU seconds.

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
        start = time.process_time()
        try:
            return (yield)
        finally:
            self.tests[item.nodeid] = time.process_time() - start, sorted(self.reached)

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
    tests: dict[str, tuple[float, list[int]]]  # CPU seconds and lines by test
    least: int  # CPU seconds that a mutant gets in any case

    def reaching(self, line: int) -> list[str]:
        """The tests that reach a statement, the fastest first."""
        everyone = line == 0 or line in self.shared
        reach = [(seconds, name) for name, (seconds, lines) in self.tests.items() if everyone or line in lines]
        return [name for _, name in sorted(reach)]

    def limit(self, names: Sequence[str]) -> int:
        """CPU seconds for a mutant on these tests: four times what the unchanged file takes."""
        return max(self.least, round(4 * sum(self.tests[name][0] for name in names)))


def baseline(file: Path, source: str, tests: list[str], least: int, copied: Path) -> Baseline | str:
    """What the tests do on the unchanged file, or the end of their output if they fail."""
    log, notes = copied / "baseline.log", copied / "baseline.json"
    recorder = Recorder(notes)
    setattr(builtins, PROBE, recorder.reached.add)
    child = os.fork()
    if child == 0:
        _be_tested(tests, Changed(_module(file), str(copied / file), probed(source, PROBE)), recorder, 0, log)
    _, status = os.waitpid(child, 0)
    if _fate(status) != SURVIVED:
        return log.read_text()[-600:] or "the tests die"
    shared, known = json.loads(notes.read_text())
    return Baseline(frozenset(shared), known, least)


def fates(
    file: Path, chosen: Sequence[Mutant], tests: list[str], known: Baseline, jobs: int, copied: Path
) -> list[str]:
    """What becomes of each mutant."""
    fate = {id(m): SURVIVED for m in chosen if not known.reaching(m.statement)}
    inside = [m for m in chosen if id(m) not in fate and m.statement and m.statement not in known.shared]
    fate |= _in_place(file, inside, tests, known, jobs, copied)
    rest = [m for m in chosen if fate.get(id(m), UNFIT) == UNFIT]

    def start(mutant: Mutant) -> int:
        child = os.fork()
        if child == 0:
            order = known.reaching(mutant.statement)
            changed = Changed(_module(file), str(copied / file), mutant.tree)
            own = sorted({name.split("::")[0] for name in order})
            _be_tested(own, changed, Chosen(order, set(known.tests)), known.limit(order), None)
        return child

    fate |= _each(rest, jobs, start)
    return [fate[id(m)] for m in chosen]


def _each(chosen: Sequence[Mutant], jobs: int, start: Callable[[Mutant], int]) -> dict[int, str]:
    """Fates by ``id``, of children that ``start`` forks, ``jobs`` at a time."""
    fate: dict[int, str] = {}
    running: dict[int, Mutant] = {}
    queue = list(reversed(chosen))
    while queue or running:
        while queue and len(running) < jobs:
            mutant = queue.pop()
            running[start(mutant)] = mutant
        child, status = os.wait()
        mutant, end = running.pop(child), _fate(status)
        if end == INTERRUPTED:
            queue.append(mutant)
        else:
            fate[id(mutant)] = end
    return fate


def _in_place(
    file: Path, chosen: Sequence[Mutant], tests: list[str], known: Baseline, jobs: int, copied: Path
) -> dict[int, str]:
    """Fates by ``id`` of mutants inside functions."""
    notes = copied / "fates.json"
    notes.write_text("{}")
    if not chosen:
        return {}
    child = os.fork()
    if child == 0:
        standing = Standing(_module(file), str(copied / file), chosen, known, jobs, notes)
        _be_tested(tests, None, standing, 0, None)
    os.waitpid(child, 0)
    return {int(key): end for key, end in json.loads(notes.read_text()).items()}  # missing: UNFIT


@dataclass
class Standing:
    """pytest plugin that, once the tests are collected, forks a process for each mutant and writes their fates."""

    module: str
    path: str
    mutants: Sequence[Mutant]
    known: Baseline
    jobs: int
    notes: Path

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: Any) -> None:
        functions = _functions(importlib.import_module(self.module))
        items = {item.nodeid: item for item in session.items}
        gc.freeze()

        def start(mutant: Mutant) -> int:
            child = os.fork()
            if child == 0:
                self._be_tested(mutant, functions, items)
            return child

        self.notes.write_text(json.dumps(_each(self.mutants, self.jobs, start)))
        os._exit(0)

    def _be_tested(self, mutant: Mutant, functions: list[FunctionType], items: dict[str, Any]) -> None:
        code = 1
        try:
            order = self.known.reaching(mutant.statement)
            _limit(self.known.limit(order))
            if not put_in_place(functions, compile(mutant.tree, self.path, "exec")):
                os._exit(NOT_IN_PLACE)
            run = [items[name] for name in order]
            for item, following in zip_longest(run, run[1:]):
                item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            code = 0
        finally:
            os._exit(code)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            os._exit(1)


def _functions(module: ModuleType) -> list[FunctionType]:
    """Every function that the module's source made so far, methods and closures included."""
    made = [f for f in gc.get_objects() if isinstance(f, FunctionType) and f.__globals__ is vars(module)]
    return [f for f in made if f.__code__.co_filename == module.__file__]  # a dataclass's own have no source


def put_in_place(functions: list[FunctionType], module: CodeType) -> bool:
    """Give functions the code that has their name and line in ``module``. False where none changed or one cannot."""
    codes: dict[tuple[str, int], list[CodeType]] = {}
    for code in _codes(module):
        codes.setdefault((code.co_qualname, code.co_firstlineno), []).append(code)
    changed = False
    for function in functions:
        found = codes.get((function.__code__.co_qualname, function.__code__.co_firstlineno), [])
        if len(found) != 1 or len(found[0].co_freevars) != len(function.__code__.co_freevars):
            return False
        changed |= found[0] != function.__code__
        function.__code__ = found[0]
    return changed


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _module(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def _fate(status: int) -> str:
    if os.WIFSIGNALED(status):
        by = os.WTERMSIG(status)
        return INTERRUPTED if by in OUTSIDE else TIMED_OUT if by in (signal.SIGXCPU, signal.SIGALRM) else KILLED
    code = os.WEXITSTATUS(status)
    return SURVIVED if code in (0, NO_TESTS) else UNFIT if code == NOT_IN_PLACE else KILLED


def _limit(seconds: int) -> None:
    """Of CPU time, so that a busy machine kills nothing."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    signal.alarm(30 * seconds)  # for one that waits; its default action ends the process, in C++ too


def _be_tested(tests: Sequence[str], changed: Changed | None, plugin: object, limit: int, log: Path | None) -> None:
    """In the child: never returns. ``limit``: CPU seconds; 0 is none."""
    code = 1
    try:
        if limit:
            _limit(limit)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 6 * GIB,) * 2)
        output = os.open(os.devnull if log is None else log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if changed is not None:
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
