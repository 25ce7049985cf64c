"""Files that are written: whole, with their weights where they belong, and with no shape said twice."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from edgesam_deploy.onnx_file import write_graph


def branching() -> ir.Model:
    """``x @ w``, plus or minus a weight of its branch."""
    ends = {name: helper.make_tensor_value_info(name, 1, [2, 4]) for name in ("y", "z")}

    def branch(kind: str) -> onnx.GraphProto:
        own = numpy_helper.from_array(np.ones((2, 4), np.float32), f"{kind}_w")
        return helper.make_graph([helper.make_node(kind, ["p", f"{kind}_w"], ["z"])], kind, [], [ends["z"]], [own])

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("Add"), else_branch=branch("Sub")),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, [2, 3]), helper.make_tensor_value_info("c", 9, [])]
    weights = [numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w")]
    graph = helper.make_graph(nodes, "g", inputs, [ends["y"]], weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


def graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return [graph, *(g for one in inner for g in graphs(one))]


@pytest.mark.parametrize("external", [False, True])
def test_no_shape_of_a_weight_is_said_twice(tmp_path, external):
    model = branching()
    path = tmp_path / "model.onnx"
    assert ir.to_proto(model).graph.value_info, "onnx_ir says them twice: else this function is not needed"
    write_graph(model, path, external=external)
    assert (tmp_path / "model.onnx.data").exists() == external
    found = graphs(onnx.load(path).graph)
    assert len(found) == 3
    for graph in found:
        weights = {weight.name for weight in graph.initializer}
        assert weights
        assert not weights & {value.name for value in graph.value_info}
    session = onnxruntime.InferenceSession(path)
    for chosen, sign in ((True, 1), (False, -1)):
        (y,) = session.run(None, {"x": np.ones((2, 3), np.float32), "c": np.array(chosen)})
        np.testing.assert_array_equal(y, np.array([[12, 15, 18, 21]] * 2) + sign)
