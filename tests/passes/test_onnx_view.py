"""The values of an onnx program, computed in portions that fit into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from passes.programs import counts, parsed

from edgesam_deploy.passes import onnx_view
from edgesam_deploy.passes.correspondence import Region
from edgesam_deploy.passes.execute import run_program
from edgesam_deploy.passes.onnx import fuse_reshapes
from edgesam_deploy.passes.onnx_view import OnnxView

TEXT = """part (float[4,4] x, float[n,2] z) => (float[4,4] y, float[n,2] u) {
    a = Sin(x) b = Cos(a) c = Neg(b) y = Exp(c) u = Abs(z) }"""
X = {"x": np.eye(4, dtype=np.float32), "z": np.ones((3, 2), np.float32)}


@pytest.mark.parametrize(
    ("limit", "portions"),
    [
        (1 << 28, [["a", "b", "c", "y", "u"]]),
        (32, [["a", "b"], ["c", "y"], ["u"]]),
        (31, [["a"], ["b"], ["c"], ["y"], ["u"]]),
        (1, [["a"], ["b"], ["c"], ["y"], ["u"]]),
        (16 * 4 + 128, [["a", "b", "c", "y", "u"]]),  # a size that is not known counts as 64
        (16 * 4 + 127, [["a", "b", "c", "y"], ["u"]]),
    ],
)
def test_portions(limit: int, portions: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    view = OnnxView(parsed(TEXT))
    at_once = view.sketches(X)
    monkeypatch.setattr(onnx_view, "AT_ONCE", limit)
    assert list(view._batches(list(view.nodes))) == portions
    found = view.sketches(X)
    assert list(found) == list(at_once)
    for name, sketch in found.items():
        np.testing.assert_array_equal(sketch.numbers, at_once[name].numbers)


def test_a_value_of_unknown_rank_counts_as_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    view = OnnxView(parsed(TEXT))
    view.nodes["b"].outputs[0].shape = None
    monkeypatch.setattr(onnx_view, "AT_ONCE", (1 << 20) + 16)
    assert list(view._batches(["a", "b", "c", "y"])) == [["a", "b"], ["c", "y"]]
    monkeypatch.setattr(onnx_view, "AT_ONCE", (1 << 20) + 15)
    assert list(view._batches(["a", "b", "c", "y"])) == [["a"], ["b"], ["c", "y"]]


# --- reading ---------------------------------------------------------------------------------------------------------

BRANCHES = """part (float[2] x, bool f) => (float[2] y) <float[1] low = {0}, float[1] high = {1}> {
    a = Abs(x)
    y = If (f) <then_branch = p () => (float[2] u) { t = Neg(a) u = Add(t, high) },
        else_branch = q () => (float[2] v) { m = Constant<value_float = 0.5>() v = Clip(x, , m) }> }"""


def test_a_branch_reads_values_of_the_graph_around_it() -> None:
    """Not its own, and nothing where an optional input is left out."""
    view = OnnxView(parsed(BRANCHES))
    assert view.reads("y") == ["f", "a", "high", "x"]
    assert view.reads("a") == ["x"]
    assert (view.sources, view.outputs, view.constants) == ({"x", "f"}, ["y"], {"low", "high"})
    assert view.is_baked("high")
    assert not view.is_baked("a")


def test_an_input_that_has_a_default_is_no_constant() -> None:
    program = parsed("part (float[1] x) => (float[1] y) <float[1] w = {2}> { y = Mul(x, w) }")
    program.onnx.graph.inputs.append(program.onnx.graph.initializers["w"])
    view = OnnxView(program)
    assert (view.sources, view.constants) == ({"x", "w"}, set())


def test_operators_are_told_apart_by_their_results() -> None:
    view = OnnxView(parsed("part (float[4] x) => (float[2] y) { p, q = Split<num_outputs = 2>(x) y = Add(p, q) }"))
    assert [view.operator(name) for name in "pqy"] == ["::Split:0", "::Split:1", "::Add:0"]


def test_what_holds_no_numbers_has_no_sketch() -> None:
    """Strings, and lists of tensors."""
    text = """part (float[2] x, int64[1] i) => (float[2] y) {
        words = Cast<to = 8>(x) list = SequenceConstruct(x, x) b = Cast<to = 9>(x) n = Size(x)
        k = Cast<to = 1>(n) s = Cast<to = 1>(words) y = Add(s, k) }"""
    view = OnnxView(parsed(text))
    found = view.sketches({"x": np.ones(2, np.float32), "i": np.zeros(1, np.int64)})
    assert set(found) == set(view.nodes) - {"words", "list"}
    assert found["y"].numbers.size


def test_values_of_inputs_constants_and_nodes() -> None:
    view = OnnxView(parsed(BRANCHES))
    inputs = {"x": np.array([-3, 2], np.float32), "f": np.array(True)}
    found = view.values(inputs, ["high", "x", "y", "a"])
    assert {name: value.tolist() for name, value in found.items()} == {
        "high": [1], "x": [-3, 2], "y": [-2, -1], "a": [3, 2],
    }  # fmt: skip
    assert list(view.values(inputs, ["low"])) == ["low"]


def test_a_shorter_program_has_the_ends_that_were_asked_for() -> None:
    program = OnnxView(parsed(TEXT)).ending_in(["b", "a"])
    assert [spec.name for spec in program.outputs] == ["b", "a"] == [v.name for v in program.onnx.graph.outputs]
    assert counts(program) == {"Sin": 1, "Cos": 1}


@pytest.mark.parametrize(("text", "first"), [(TEXT, None), (TEXT.replace("Neg(b)", "Reshape(b, s)"), "c")])
def test_the_first_node_that_fails(text: str, first: str | None) -> None:
    """16 numbers cannot be 5."""
    view = OnnxView(parsed(text.replace(" {", " <int64[1] s = {5}> {", 1), infer=False))
    assert view.first_failing(X) == first


# --- pieces ----------------------------------------------------------------------------------------------------------

SCALED = "part (float[2,3] x) => (float[2,3] y) <float[3] w = {1, 2, 3}> { a = Mul(x, w) b = Abs(a) y = Neg(b) }"
INPUTS = {"x": -np.ones((2, 3), np.float32)}


@pytest.mark.parametrize(
    ("region", "operators", "result"),
    [
        (Region("b", ["a", "b"], ["x"]), {"Mul": 1, "Abs": 1}, [1, 2, 3]),
        (Region("y", ["y"], ["b"]), {"Neg": 1}, [-1, -2, -3]),
        (Region("a", [], ["a"]), {"Identity": 1}, [-1, -2, -3]),
        (Region("w", [], []), {"Identity": 1}, [1, 2, 3]),
        (Region("a", ["b"], ["a"]), {"Abs": 1, "Identity": 1}, [-1, -2, -3]),  # the end is what comes in
    ],
)
def test_pieces(region: Region, operators: dict[str, int], result: list[float], tmp_path: Path) -> None:
    view = OnnxView(parsed(SCALED))
    if region.nodes == ["b"]:
        operators = {"Identity": 1}
    path = view.write(region, INPUTS, tmp_path / "piece")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.graph.name, model.ir_version) == ("part", 9)
    assert path.name == "piece.onnx"
    assert "part" in (tmp_path / "piece.txt").read_text()
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT, "viewers show it"
    found = view.run_piece(path, view.values(INPUTS, region.inputs))
    assert np.broadcast_to(found, (2, 3))[1].tolist() == result
    piece = view.piece(region, INPUTS)
    assert counts(piece) == operators
    assert [(spec.name, spec.shape) for spec in piece.inputs] == [(name, (2, 3)) for name in region.inputs]
    assert [spec.name for spec in piece.outputs] == [value.name for value in model.graph.output]
    (again,) = run_program(piece, view.values(INPUTS, region.inputs)).values()
    np.testing.assert_array_equal(again, found)
    names = {"a", "b"} & {v.name for v in model.graph.input}
    assert names == set(region.inputs) - {"x"}


def test_a_graph_without_a_name_gives_pieces_that_have_one() -> None:
    program = parsed(SCALED)
    program.onnx.graph.name = None
    assert OnnxView(program).piece(Region("y", ["y"], ["b"]), INPUTS).onnx.graph.name == "piece"


def test_a_piece_that_cannot_be_typed_is_written_where_it_is_expected_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
        raise onnx.shape_inference.InferenceError("no")

    view, region = OnnxView(parsed(SCALED)), Region("b", ["a", "b"], ["x"])
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", infer_shapes)
    with pytest.raises(onnx.shape_inference.InferenceError):
        view.write(region, INPUTS, tmp_path / "runs")
    assert not (tmp_path / "runs.onnx").exists()
    assert view.write(region, INPUTS, tmp_path / "fails", runs=False).is_file()


def test_a_piece_keeps_to_one_thread_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is expected to fail is tried many times: its errors are exceptions, not lines on the terminal."""
    given = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda model, options, **o: given.append(options) or real(model, options, **o)
    )
    OnnxView(parsed(SCALED)).values(INPUTS, ["a"])
    assert [(o.log_severity_level, o.intra_op_num_threads) for o in given] == [(4, 1)]


def test_recipes_run_from_the_file(tmp_path: Path) -> None:
    """An .onnx file says what it is: only pieces of a pass are compared with nothing."""
    view = OnnxView(parsed(SCALED))
    path = view.write(Region("b", ["a", "b"], ["x"]), INPUTS, tmp_path / "piece")
    assert "expected" in view.recipe(path)
    assert "onnxruntime.InferenceSession" in view.recipe(path)
    assert "expected" not in view.recipe_of_pass(path, fuse_reshapes.run)
