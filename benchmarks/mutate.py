"""Mutation testing of the passes: break their source one place at a time, and see whether the tests notice.

    python -m benchmarks.mutate [--file PATTERN] [--sample N] [--seed S] [--jobs J] [--timeout SECONDS] [--list]

For every file of ``edgesam_deploy/passes`` its mirrored tests run against each mutant (``passes/aten/x.py`` ──
``tests/passes/aten/test_x.py`` or ``test_aten_x.py``; MORE names the others). A mutant that no test fails on survived.
Score = killed / mutants. Writes ``benchmarks/results/mutation.{md,json}``; files that a run left out keep their rows.

The sources and tests are copied first, so people may go on editing; the working tree is only read. A mutant is a fork
of a parent that has PyTorch, ONNX and pytest imported, and an import hook gives it one changed module: one to three
seconds each. Not mutated, since no test should fail on it: docstrings, types, log lines, texts of errors.
"""

from __future__ import annotations

import argparse
import ast
import copy
import fnmatch
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PASSES = Path("edgesam_deploy/passes")
RESULTS = ROOT / "benchmarks" / "results"
MORE = {  # tests beside the mirrored file, where a module is tested through another
    "execute.py": ("test_program.py", "test_engine.py"),
    "correspondence.py": ("test_bisect.py",),
    "aten_view.py": ("test_bisect.py",),
    "onnx_view.py": ("test_bisect.py",),
    "aten/graph.py": ("aten/test_eliminate_identity.py", "aten/test_fold_batch_norm.py"),
}
COMPARE = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
SPARED_CALLS = {"debug", "info", "warning", "dataclass", "catch_warnings", "getLogger", "cast", "TypeVar"}
SPARED_KEYWORDS = {"strict", "note"}  # of zip: a guard that only a bug elsewhere trips
SYMMETRIC = {"calls", "same_shape", "max", "min", "gcd", "array_equal", "equal"}
GIB = 1 << 30
KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"


@dataclass(frozen=True)
class Mutant:
    """One change: where, what, and the whole changed module."""

    line: int
    column: int
    text: str
    tree: ast.Module


@dataclass
class Tally:
    """What became of the mutants of one file."""

    sha256: str
    tests: list[str]
    possible: int
    mutants: int = 0
    killed: int = 0
    timed_out: int = 0
    seconds: float = 0.0
    survivors: list[str] | None = None
    broken: str = ""  # the tests fail on the unchanged file: nothing was measured

    @property
    def score(self) -> float:
        return (self.killed + self.timed_out) / self.mutants if self.mutants else 1.0


# --- mutants ---------------------------------------------------------------------------------------------------------


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    tree = ast.parse(source)
    found, seen = [], {ast.unparse(tree)}
    for node, change in _changes(tree):
        mutated, place = _copy_with(tree, node)
        before = ast.unparse(place)
        after = change(place)
        changed = _put(mutated, place, after)
        text = ast.unparse(changed)
        if text not in seen:
            seen.add(text)
            shown = "(deleted)" if isinstance(after, ast.Pass) else ast.unparse(after)
            found.append(Mutant(node.lineno, node.col_offset + 1, f"{_short(before)}  ->  {_short(shown)}", changed))
    return sorted(found, key=lambda m: (m.line, m.column))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:97] + "..."


def _copy_with(tree: ast.Module, node: ast.AST) -> tuple[ast.Module, Any]:
    """A deep copy of the tree and the node in it that corresponds to ``node``."""
    memo: dict[int, Any] = {}
    mutated = copy.deepcopy(tree, memo)
    return mutated, memo[id(node)]


def _put(tree: ast.Module, place: ast.AST, new: ast.AST) -> ast.Module:
    class Swap(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            if node is place:
                return ast.copy_location(new, place) if new is not place else node
            return self.generic_visit(node)

    result: ast.Module = Swap().visit(tree)
    return ast.fix_missing_locations(result)


def _changes(tree: ast.Module) -> Iterator[tuple[Any, Any]]:
    """Pairs of a node and a function from (the copy of) that node to what takes its place."""
    counts = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and _returns_int(f) for n in ast.walk(f)}
    for node in _code(tree):
        match node:
            case ast.Compare():
                for index, op in enumerate(node.ops):
                    for other in _other_comparisons(op):
                        yield node, lambda n, i=index, o=other: _with_item(n, "ops", i, o())
            case ast.Constant(value=bool()):
                yield node, lambda n: ast.Constant(not n.value)
            case ast.Constant(value=int() | float()):
                value = node.value
                near = {0: 1, 1: 0}.get(value, value + 1) if isinstance(value, int) else value * 2
                yield node, lambda n, v=near: ast.Constant(v)
                if value:
                    yield node, lambda n: ast.Constant(-n.value)
            case ast.BoolOp():
                for index in range(len(node.values)):
                    yield node, lambda n, i=index: _without(n, i)
            case ast.BinOp() if type(node.op) in ARITHMETIC:
                yield node, lambda n: ast.BinOp(n.left, ARITHMETIC[type(n.op)](), n.right)
            case ast.If() | ast.While() | ast.IfExp() if not _is_comparison(node.test):
                yield node.test, lambda n: ast.UnaryOp(ast.Not(), n)
            case ast.comprehension():
                for condition in node.ifs:
                    if not _is_comparison(condition):
                        yield condition, lambda n: ast.UnaryOp(ast.Not(), n)
            case ast.Call() if len(node.args) == 2 and not _is_symmetric(node):
                yield node, lambda n: ast.Call(n.func, n.args[::-1], n.keywords)
            case ast.Return() if id(node) in counts and node.value is not None:
                yield node, lambda n: ast.Return(ast.Constant(0))
                yield node, lambda n: ast.Return(ast.BinOp(n.value, ast.Add(), ast.Constant(1)))
            case ast.Expr() | ast.AugAssign() | ast.Continue() | ast.Break() | ast.Delete() | ast.Raise():
                yield node, lambda _: ast.Pass()
            case ast.Assign() if any(isinstance(t, ast.Attribute | ast.Subscript) for t in node.targets):
                yield node, lambda _: ast.Pass()


def _is_comparison(node: ast.AST) -> bool:
    """Whether another operator negates it already."""
    return isinstance(node, ast.Compare) and len(node.ops) == 1


def _is_symmetric(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in SYMMETRIC or any(isinstance(a, ast.Starred) for a in node.args)


def _returns_int(function: ast.FunctionDef) -> bool:
    return isinstance(function.returns, ast.Name) and function.returns.id == "int"


def _other_comparisons(op: ast.cmpop) -> list[type[ast.cmpop]]:
    opposite = {ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt}
    return [table[type(op)] for table in (COMPARE, opposite) if type(op) in table]  # type: ignore[index]


def _with_item(node: Any, field: str, index: int, value: ast.AST) -> Any:
    getattr(node, field)[index] = value
    return node


def _without(node: ast.BoolOp, index: int) -> ast.expr:
    values = node.values[:index] + node.values[index + 1 :]
    return values[0] if len(values) == 1 else ast.BoolOp(node.op, values)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below ``node`` that a test can be expected to notice."""
    for child in ast.iter_child_nodes(node):
        if _is_spared(child):
            continue
        if isinstance(child, ast.Raise):
            yield child  # it may be deleted, but its text is its own
            continue
        yield child
        if isinstance(child, ast.FunctionDef):
            for part in (*child.body, *child.args.defaults, *child.args.kw_defaults, *child.decorator_list):
                if part is not None and not _is_spared(part):
                    yield part
                    yield from _code(part)
        elif isinstance(child, ast.AnnAssign):
            if child.value is not None:
                yield child.value
                yield from _code(child.value)
        elif isinstance(child, ast.Assert):
            continue  # our own invariants
        else:
            yield from _code(child)


def _is_spared(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.JoinedStr() | ast.Assert():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Expr(value=ast.Call() as call):
            return _is_spared(call)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in SPARED_CALLS
        case ast.keyword(arg=name):
            return name in SPARED_KEYWORDS
    return False


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
    import pytest  # noqa: F401
    import torch

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


def run_tests(tests: Sequence[str], changed: Changed | None, timeout: int, log: Path | None = None) -> str:
    """The fate of one mutant, in a fork. ``log``: where the tests' output goes."""
    child = os.fork()
    if child == 0:
        _be_tested(tests, changed, timeout, log)
    _, status = os.waitpid(child, 0)
    return _fate(status)


def _fate(status: int) -> str:
    if os.WIFSIGNALED(status):
        return TIMED_OUT if os.WTERMSIG(status) == signal.SIGALRM else KILLED
    return SURVIVED if os.WEXITSTATUS(status) == 0 else KILLED


def _be_tested(tests: Sequence[str], changed: Changed | None, timeout: int, log: Path | None) -> None:
    """In the child: never returns."""
    code = 1
    try:
        signal.alarm(timeout)  # its default action ends the process, in the middle of C++ too
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 6 * GIB,) * 2)
        output = os.open(os.devnull if log is None else log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if changed is not None:
            sys.meta_path.insert(0, changed)
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "-W", "ignore"]
        options += ["--tb=no"] if log is None else ["--tb=short"]
        code = int(pytest.main([*options, *tests]))
    finally:
        os._exit(code)


def measure(
    file: Path, *, sample: int | None, seed: int, jobs: int, timeout: int, only_list: bool, copied: Path
) -> Tally:
    """Run the mutants of one file of the copy."""
    source = (copied / file).read_text()
    every = mutants(source)
    tests = mirrored_tests(file.relative_to(PASSES), copied)
    tally = Tally(hashlib.sha256(source.encode()).hexdigest(), tests, len(every), survivors=[])
    chosen = every
    if sample is not None and sample < len(every):
        chosen = random.Random(f"{seed} {file.name}").sample(every, sample)
        chosen.sort(key=lambda m: (m.line, m.column))
    if only_list:
        for mutant in chosen:
            print(f"{file}:{mutant.line}:{mutant.column}: {mutant.text}")
        return tally
    start = time.perf_counter()
    log = copied / "baseline.log"
    if not tests or run_tests(tests, None, 10 * timeout, log) != SURVIVED:
        tally.broken = "no tests" if not tests else log.read_text()[-600:]
        return tally
    timeout = max(timeout, round(6 * (time.perf_counter() - start)))  # a busy machine is no kill
    module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
    running: dict[int, Mutant] = {}
    queue = list(reversed(chosen))
    while queue or running:
        while queue and len(running) < jobs:
            mutant = queue.pop()
            child = os.fork()
            if child == 0:
                _be_tested(tests, Changed(module, str(copied / file), mutant.tree), timeout, None)
            running[child] = mutant
        child, status = os.wait()
        _record(tally, running.pop(child), _fate(status))
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
    mutated = sum(t["mutants"] for t in tallies.values())
    caught = sum(t["killed"] + t["timed_out"] for t in tallies.values())
    score = f"{caught / mutated:.1%}" if mutated else "nothing measured"
    lines = [
        "# Mutation testing of the passes",
        "",
        f"**{score}**: {caught} of {mutated} mutants killed. Written by `make mutate` (`python -m benchmarks.mutate`), "
        "which says what is mutated; a file's row is of the day it was last run.",
        "",
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
        default=60,
        help="least seconds per mutant; over six times what the unchanged file takes, it counts as killed",
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
