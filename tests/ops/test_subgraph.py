"""Nodes cut out of a file are valid models that compute what they did inside of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from edgesam_deploy.errors import OutputError
from edgesam_deploy.ops import report, save_subgraphs

TEXT = """
<ir_version: 10, opset_import: ["": 17]>
net (float[2,3] x, bool c) => (float[2,3] y) <float[3] w = {1.0, 2.0, 3.0}> {
  a = Add (x, w)
  n = Sin (a)
  e = If (c) <
    then_branch = yes () => (float[2,3] s) { s = Cos (n) }, else_branch = no () => (float[2,3] t) { t = Neg (a) }
  >
  y = Mul (e, a)
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(parser.parse_model(TEXT), path)
    return path


def cut(file: Path, *operators: str) -> dict[str, onnx.ModelProto]:
    rows = [row for row in report(file, ["onnx"]).rows if row.operator in operators]
    saved = save_subgraphs(file, rows, file.parent / "cut")
    assert saved.left_out == ()
    models = [onnx.load(path) for path in saved.files]
    for model in models:
        onnx.checker.check_model(model, full_check=True)
    return {model.graph.node[0].op_type: model for model in models}


def test_each_is_one_node_with_its_constants_and_types(file: Path) -> None:
    found = cut(file, "Add", "Cos", "If")
    add = found["Add"].graph
    assert [value.name for value in add.input] == ["x"]
    assert [dim.dim_value for dim in add.input[0].type.tensor_type.shape.dim] == [2, 3]
    assert onnx.numpy_helper.to_array(add.initializer[0]).tolist() == [1.0, 2.0, 3.0]
    assert [value.name for value in found["Cos"].graph.input] == ["n"], "inside of a branch"
    assert {value.name for value in found["If"].graph.input} == {"a", "c", "n"}, "what its branches read from around it"


def test_the_piece_computes_what_it_did(file: Path) -> None:
    session = onnxruntime.InferenceSession(cut(file, "Add")["Add"].SerializeToString())
    (y,) = session.run(None, {"x": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(y, [[2, 3, 4]] * 2)


def test_large_weights_come_along(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    weight = onnx.numpy_helper.from_array(np.arange(4096, dtype=np.float32).reshape(64, 64), "w")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 64]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (found,) = cut(path, "MatMul").values()
    assert onnx.numpy_helper.to_array(found.graph.initializer[0])[63, 63] == 4095


def test_a_node_of_unknown_type_is_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    onnx.save(
        parser.parse_model("""<ir_version: 10, opset_import: ["": 17, "acme": 1]>
        net (float[2] x) => (y) { a = acme.Magic (x)  b = Erf (a)  y = Identity (b) }"""),
        path,
    )
    rows = report(path, ["onnx"]).failures()
    saved = save_subgraphs(path, rows, tmp_path / "cut")
    assert (len(saved.files), set(saved.left_out)) == (0, {"a", "b", "y"})


def test_files_of_other_nodes_are_not_overwritten(file: Path) -> None:
    assert {path.name for path in (*cut_twice(file),)} == {"Add_a.onnx", "Add_a_2.onnx"}


def cut_twice(file: Path) -> list[Path]:
    cut(file, "Add")
    cut(file, "Add")
    return sorted((file.parent / "cut").iterdir())


def test_a_folder_that_cannot_be(file: Path) -> None:
    rows = report(file, ["onnx"]).rows
    with pytest.raises(OutputError, match="cannot write into"):
        save_subgraphs(file, rows, file / "cut")
