"""Values of two programs side by side: what counts as the same, which belong together, and pieces cut out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from passes.programs import parsed

from edgesam_deploy.passes.bisect import view_of
from edgesam_deploy.passes.correspondence import (
    Region,
    Sketch,
    View,
    agreement,
    first_true,
    partners,
    recipe_lines,
)  # fmt: skip
from edgesam_deploy.passes.execute import run_program

TEXT = """part (float[4,4] x) => (float[4,4] y, float[4,4] x2) <float[4] w = {1, 2, 3, 4}> {
    a = Sin(x) b = Mul(a, w) c = Add(b, a) y = Neg(c) x2 = Exp(x) }"""


def view(text: str = TEXT) -> View:
    return view_of(parsed(text))


def sketch(size: int, seed: int = 0) -> Sketch:
    return Sketch.of(np.random.default_rng(seed).standard_normal(size))


# --- sketches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "kept"), [(1, 1), (4095, 4095), (4096, 4096), (4097, 4096), (10_000, 4096)])
def test_at_most_4096_numbers_are_kept(size: int, kept: int) -> None:
    values = np.arange(size, dtype=np.float32)
    found = Sketch.of(values)
    assert found.numbers.size == kept
    assert found.shape == (size,)
    assert found.norm == pytest.approx(np.linalg.norm(values))
    if size == kept:
        np.testing.assert_array_equal(found.numbers, values)


def test_distances_are_relative_to_the_first() -> None:
    two, three = Sketch.of(np.full((5, 5), 2.0)), Sketch.of(np.full((5, 5), 3.0))
    assert two.distance(three) == pytest.approx(0.5)
    assert three.distance(two) == pytest.approx(1 / 3)
    assert two.distance(two) == 0


def test_values_near_zero_count_as_a_hundredth() -> None:
    """What is left of terms that cancel is rounding, and its relative error says nothing."""
    tiny, other = Sketch.of(np.full(100, 1e-5)), Sketch.of(np.full(100, 3e-5))
    assert tiny.distance(other) == pytest.approx(2e-3)
    assert Sketch.of(np.zeros(100)).distance(other) == pytest.approx(3e-3)


def test_values_without_elements_are_equal() -> None:
    assert Sketch.of(np.zeros((0, 3))).distance(Sketch.of(np.zeros((0, 3)))) == 0


# --- which values correspond -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "known"), [(15, False), (16, True)])
def test_a_value_under_another_name_is_known_by_its_numbers(size: int, known: bool) -> None:
    """From 16 on: smaller ones, flags and sizes, are equal by accident."""
    found = agreement({"a": sketch(size)}, {"b": sketch(size)}, {}, 1e-5)
    assert (found.stops, found.shared, found.wrong) == (({"b"}, {"a"}, set()) if known else (set(), set(), set()))


def test_a_small_value_is_known_by_its_place() -> None:
    found = agreement({"a": sketch(3)}, {"b": sketch(3)}, {"b": ["a"]}, 1e-5)
    assert (found.stops, found.shared, found.wrong) == ({"b"}, {"a"}, set())
    assert found.is_same("a", "b")
    assert found.partner("b") == "a"


def test_one_that_ought_to_be_the_same_and_is_not_is_wrong() -> None:
    old = {"a": sketch(20, 1), "other": sketch(20, 2), "long": sketch(21)}
    found = agreement(old, {"b": sketch(20, 3)}, {"b": ["long", "a", "other", "gone"]}, 1e-5)
    assert (found.stops, found.shared, found.wrong) == (set(), set(), {"b"})
    assert found.partner("b") == "a", "the first that could be meant"
    assert not found.is_same("a", "b")


def test_what_has_no_counterpart_is_neither() -> None:
    found = agreement({"a": sketch(20)}, {"b": sketch(21)}, {"b": ["a"]}, 1e-5)
    assert (found.stops, found.wrong) == (set(), set())
    assert found.is_same("x", "x"), "inputs are known by their names"
    assert not found.is_same("x", "z")
    assert not found.is_same("a", "b"), "of another shape"


def test_the_limit_is_part_of_what_is_the_same() -> None:
    old, new = {"a": Sketch.of(np.ones(64))}, {"b": Sketch.of(np.full(64, 1.5))}
    assert agreement(old, new, {"b": ["a"]}, 0.5).stops == {"b"}
    assert agreement(old, new, {"b": ["a"]}, 0.499).wrong == {"b"}


def test_partners_go_back_from_the_outputs() -> None:
    renamed = TEXT.replace(" a ", " p ").replace("(a", "(p").replace(" a)", " p)").replace("b = ", "q = ")
    renamed = renamed.replace("(b,", "(q,")
    assert partners(view(), view(renamed)) == {"y": ["y"], "x2": ["x2"], "c": ["c"], "q": ["b"], "p": ["a"]}


def test_partners_end_at_another_operator() -> None:
    other = TEXT.replace("c = Add(b, a)", "c = Sub(q, a)").replace("b = Mul", "q = Mul")
    assert partners(view(), view(other)) == {"y": ["y"], "x2": ["x2"], "c": ["c"], "a": ["a"]}


def test_operands_that_changed_places_have_two_candidates() -> None:
    swapped = TEXT.replace("Add(b, a)", "Add(a, b)")
    found = partners(view(), view(swapped))
    assert {name: sorted(found[name]) for name in "abc"} == {"a": ["a", "b"], "b": ["a", "b"], "c": ["c"]}


# --- pieces ----------------------------------------------------------------------------------------------------------


def test_regions() -> None:
    whole = view()
    assert whole.region("y", set(), set()) == Region("y", ["a", "b", "c", "y"], ["x"], [])
    assert whole.region("y", {"a"}, set()) == Region("y", ["b", "c", "y"], ["a"], [])
    assert whole.region("y", {"a"}, {"b"}) == Region("y", ["c", "y"], ["a"], ["b"])
    assert whole.region("b", {"b"}, {"b"}) == Region("b", ["a", "b"], ["x"], []), "the end belongs to it in any case"
    assert whole.region("x", set(), set()) == Region("x", [], ["x"], []), "an output that is an input"
    assert whole.region("w", set(), set()) == Region("w", [], [], []), "a constant is in the piece itself"


def test_neighbourhoods() -> None:
    whole = view()
    assert whole.near("c", 1) == Region("c", ["c"], ["b", "a"], [])
    assert whole.near("c", 2) == Region("c", ["a", "b", "c"], ["x"], [])
    assert whole.near("y", 2) == Region("y", ["c", "y"], ["b", "a"], [])
    assert whole.near("y", 9) == whole.region("y", set(), set())


def test_places() -> None:
    whole = view()
    assert [whole.position(name) for name in ("a", "b", "x2", "x")] == [0, 1, 4, -1]
    assert whole.tensors({"x": np.ones((4, 4), np.float32)}) == ["a", "b", "c", "y", "x2"]


def test_a_prefix_ends_in_what_none_of_it_reads() -> None:
    inputs = {"x": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)}
    whole = view()
    found = run_program(whole.prefix(["a", "b", "x2"]), inputs)
    assert list(found) == ["b", "x2"]
    np.testing.assert_allclose(found["b"], np.sin(inputs["x"]) * [1, 2, 3, 4], rtol=1e-6)


@pytest.mark.parametrize("count", range(6))
def test_the_first_from_which_on_it_holds(count: int) -> None:
    for first in range(count + 1):
        asked: list[int] = []

        def holds(index: int, first: int = first, asked: list[int] = asked) -> bool:
            asked.append(index)
            return index >= first

        assert first_true(count, holds) == (first if first < count else None)
        assert set(asked) <= set(range(count))
    if count == 5:
        assert len(asked) == 1, "where it does not hold at the end, it is asked once"


def test_the_lines_that_run_a_piece(tmp_path: Path) -> None:
    lines = recipe_lines(tmp_path / "after.onnx", "x = 1", "import onnx", "actual = x", compare=True).splitlines()
    assert lines[:3] == ["from pathlib import Path", "import numpy as np", "import onnx"]
    assert lines[3:6] == [f"here = Path({str(tmp_path.resolve())!r})", "x = 1", "actual = x"]
    assert lines[6].startswith("expected =")
    assert len(lines) == 8
    assert recipe_lines(tmp_path / "a", "x = 1").splitlines()[3:] == ["x = 1"]
