"""What is mutated, what is not, and that survivors are told from the dead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mutant_runs import Baseline, put_in_place
from benchmarks.mutants import mutants, probed
from benchmarks.mutate import Tally, markdown, mirrored_tests, wilson

ROOT = Path(__file__).parents[2]


def changes(source: str) -> list[str]:
    return [mutant.text for mutant in mutants(source)]


def test_what_is_changed() -> None:
    assert changes("x = a < b") == ["a < b  ->  a <= b", "a < b  ->  a >= b"]
    assert changes("x = a is None") == ["a is None  ->  a is not None"]
    assert changes("x = 1") == ["1  ->  0", "1  ->  -1"]
    assert changes("x = 0") == ["0  ->  1"]
    assert changes("x = 7") == ["7  ->  8", "7  ->  -7"]
    assert changes("x = a[2]") == ["2  ->  3"]
    assert changes("x = 0.5") == ["0.5  ->  1.0", "0.5  ->  -0.5"]
    assert changes("x = True") == ["True  ->  False"]
    assert changes("x = a and b and c") == [f"a and b and c  ->  {rest}" for rest in ("b and c", "a and c", "a and b")]
    assert changes("x = a + b") == ["a + b  ->  a - b"]
    assert changes("f(a, b)") == ["f(a, b)  ->  (deleted)", "f(a, b)  ->  f(b, a)"]
    assert changes("if ok:\n    y = x") == ["ok  ->  not ok"]
    assert changes("x = [a for a in b if a]") == ["a  ->  not a"]
    assert changes("def f() -> int:\n    return n") == ["return n  ->  return 0", "return n  ->  return n + 1"]
    assert changes("for a in b:\n    continue") == ["continue  ->  (deleted)"]
    assert changes("if a == b:\n    raise E(f'{a + 1}')")[-1] == "raise E(f'{a + 1}')  ->  (deleted)"


def test_what_is_not() -> None:
    spared = '''
"""Text, 1 + 1."""
import os
from typing import TYPE_CHECKING
x: Literal[1, 2]
if TYPE_CHECKING:
    y = 1
log.debug("%s", 1)
assert a == b, 3
z = f"{a + 1}"
def f(a: Literal[1]) -> Literal[2]:
    """Text."""
    return zip(strict=True)
'''
    assert changes(spared) == []


def test_a_mutant_is_a_whole_module() -> None:
    (first, *_) = mutants("a = 2\n\n\ndef f():\n    return a > 1\n")
    scope: dict[str, object] = {}
    exec(compile(first.tree, "f", "exec"), scope)
    assert (first.line, first.column, scope["a"]) == (1, 5, 3)


def test_the_statement_around_a_mutant() -> None:
    """What must run for it to matter; 0 for what runs when the module is imported, caches included."""
    source = """
LIMIT = 5
def plain(a, b=7):
    if a > 1:
        return [x + 2
                for x in a]
    def inner():
        return 3
@functools.cache
def cached():
    return 4
"""
    found = {(mutant.line, mutant.statement) for mutant in mutants(source)}
    assert found == {(2, 0), (3, 0), (4, 4), (5, 5), (8, 8), (11, 0)}


def test_probes_tell_which_statements_ran() -> None:
    source = """
def f(a):
    'Text.'
    if a:
        return 1
    else:
        a = [
            2]
    return a
"""
    reached: set[int] = set()
    scope: dict[str, object] = {"probe": reached.add}
    exec(compile(probed(source, "probe"), "f", "exec"), scope)
    assert scope["f"](0) == [2]  # type: ignore[operator]
    assert scope["f"].__doc__ == "Text."
    assert reached == {4, 7, 9}


def test_which_tests_a_mutant_needs() -> None:
    known = Baseline(frozenset({3}), {"slow": (2.0, [5, 6]), "fast": (0.1, [6]), "other": (0.2, [])}, 20)
    assert known.reaching(6) == ["fast", "slow"]
    assert known.reaching(5) == ["slow"]
    assert known.reaching(7) == []
    assert known.reaching(0) == known.reaching(3) == ["fast", "other", "slow"]
    assert known.limit(["fast"]) == 20
    assert known.limit(["fast", "slow", "slow", "slow"]) == 24


SOURCE = """
def outer(a):
    def inner(b):
        return a + b
    return inner

class C:
    @property
    def one(self):
        return 1

pair = [lambda a: a + 1, lambda a: a + 2]
"""


def put(old: str, new: str) -> tuple[bool, dict[str, Any]]:
    """Whether functions of SOURCE took the changed code, and their module."""
    scope: dict[str, Any] = {}
    exec(compile(SOURCE, "f", "exec"), scope)
    scope["made"] = scope["outer"](5)
    functions = [scope["outer"], scope["made"], scope["C"].one.fget]
    if "lambda" in old:
        functions += scope["pair"]
    assert old in SOURCE
    return put_in_place(functions, compile(SOURCE.replace(old, new), "f", "exec")), scope


def test_functions_take_the_code_of_a_mutant() -> None:
    changed, scope = put("a + b", "a - b")
    assert changed
    assert (scope["made"](3), scope["outer"](7)(3)) == (2, 4), "also those that were made before"
    changed, scope = put("return 1", "return 2")
    assert changed
    assert scope["C"]().one == 2
    assert not put("return inner", "return inner")[0], "nothing changed"
    assert not put("return a + b", "return b")[0], "a closure of another size"
    assert not put("lambda a: a + 1", "lambda a: a - 1")[0], "two of one name and line"


def test_tests_are_mirrored() -> None:
    assert mirrored_tests(Path("aten/fold_constants.py"), ROOT) == ["tests/passes/aten/test_aten_fold_constants.py"]
    assert mirrored_tests(Path("onnx/eliminate_dead.py"), ROOT) == ["tests/passes/onnx/test_onnx_eliminate_dead.py"]
    assert mirrored_tests(Path("bisect.py"), ROOT) == ["tests/passes/test_bisect.py"]
    expected = ["tests/passes/test_engine.py", "tests/passes/test_engine_proofs.py"]
    assert mirrored_tests(Path("engine.py"), ROOT) == expected
    assert "tests/passes/test_program.py" in mirrored_tests(Path("execute.py"), ROOT)


def test_a_report() -> None:
    tally = Tally("0", ["t"], 9, mutants=4, killed=2, timed_out=1, survivors=["3:1: 0  ->  1"])
    tally.sample, tally.seed = 4, 7
    text = markdown({"aten/x.py": vars(tally)})
    assert "**75.0%**: 3 of 4 mutants killed (95 % interval 30.1% to 95.4%), of 9 possible ones in 1 files" in text
    assert "a sample of each file's mutants, drawn with seed 7" in text
    assert "| aten/x.py | 75% | 3 | 1 | 4 | 9 | 0 |" in text
    assert "- `aten/x.py:3:1: 0  ->  1`" in text


def test_each_file_weighs_what_it_has() -> None:
    large = Tally("0", ["t"], 90, 10, mutants=10, killed=10, survivors=[])
    small = Tally("0", ["t"], 10, 10, mutants=10, killed=5, survivors=["1:1: 0  ->  1"] * 5)
    text = markdown({"large.py": vars(large), "small.py": vars(small)})
    assert "**75.0%**: 15 of 20" in text
    assert "possible mutants: **95.0%** (69.1% to 99.4%)" in text, "12.2 mutants are as sure as these 20"


def test_the_interval_of_a_share() -> None:
    """Newcombe (1998), table I: 81 of 263, and 0 of 20."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)


@pytest.mark.slow
def test_from_end_to_end(tmp_path: Path) -> None:
    """A file with four mutants, of which its tests kill each."""
    command = [sys.executable, "-m", "benchmarks.mutate", "--file", "aten/eliminate_dead.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.startswith("aten/eliminate_dead.py: 100% of 4"), done
    assert (tmp_path / "mutation.md").is_file()
