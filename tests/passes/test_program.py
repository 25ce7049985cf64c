"""A program: its dialect, its operators, and copies that are copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from passes.programs import Calls, counts, parsed, randomise, traced
from torch import Tensor, nn

from edgesam_deploy.contract import sample_inputs
from edgesam_deploy.passes.aten.graph import AtenGraph
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.onnx.graph import add_initializer
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten


def aten_program() -> Program:
    def function(s: Calls, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return s.net(x).relu() * s.table, y + torch.tensor([1.0, 2.0])

    return traced(
        randomise(Calls(function, net=nn.Linear(3, 4), table=torch.arange(4.0))), ("batch", 3), (1, 2), outputs=2
    )


def onnx_program() -> Program:
    return parsed("""
        part (float[batch,3] x) => (float[batch,3] y) <float[3] w = {1, 2, 3}> { a = Mul(x, w) y = Relu(a) }""")


def outputs(program: Program, seed: int = 5) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return run_program(program, sample_inputs(program.inputs, seed))


def test_dialects() -> None:
    before, after = aten_program(), onnx_program()
    assert (before.dialect, after.dialect) == ("aten", "onnx")
    with pytest.raises(AssertionError, match="still in the aten dialect"):
        _ = before.onnx
    with pytest.raises(AssertionError, match="in the onnx dialect already"):
        _ = after.aten


def test_operators() -> None:
    found = counts(aten_program())
    assert (found["linear"], found["relu"], found["mul"], found["add"]) == (1, 1, 1, 1)
    assert counts(onnx_program()) == {"Mul": 1, "Relu": 1}


def test_running_gives_the_modules_outputs() -> None:
    net = randomise(nn.Linear(3, 4))
    program = traced(Calls(lambda s, x: s.net(x), net=net), ("batch", 3))
    inputs = sample_inputs(program.inputs, 1)
    with torch.no_grad():
        expected = net(torch.from_numpy(inputs["x"])).numpy()
    np.testing.assert_allclose(run_program(program, inputs)["out0"], expected, rtol=1e-6)


def test_inputs_are_taken_by_name() -> None:
    """In whatever order, and more than are asked for."""
    program = aten_program()
    inputs = sample_inputs(program.inputs, 5)
    shuffled = {"other": np.zeros(1), **dict(reversed(inputs.items()))}
    for name, value in run_program(program, shuffled).items():
        np.testing.assert_array_equal(value, outputs(program)[name])


@pytest.mark.parametrize("make", [aten_program, onnx_program])
def test_a_copy_computes_the_same(make) -> None:  # type: ignore[no-untyped-def]
    program = make()
    copy = program.copy()
    assert (copy.name, copy.inputs, copy.outputs) == (program.name, program.inputs, program.outputs)
    for name, value in outputs(program).items():
        np.testing.assert_array_equal(outputs(copy)[name], value)


def test_editing_a_copy_leaves_the_aten_original() -> None:
    program = aten_program()
    before, specs = outputs(program), str(program.aten.graph_signature)
    weights, graph = dict(program.aten.state_dict), str(program.aten.graph)
    copy = program.copy()
    with AtenGraph(copy) as edit:
        (node,) = edit.calls(aten.relu.default)
        with edit.graph.inserting_before(node):
            extra = edit.add_constant("net.weight", torch.ones(4))
            edit.replace(node, edit.call(aten.mul.Tensor, node.args[0], extra))
        for node in edit.calls(aten.linear.default):
            node.args = (node.args[0], node.args[1])  # the bias is dead now
    assert set(copy.aten.state_dict) != set(weights)
    assert program.aten.state_dict == weights
    assert (str(program.aten.graph_signature), str(program.aten.graph)) == (specs, graph)
    for name, value in outputs(program).items():
        np.testing.assert_array_equal(value, before[name])
    assert relative_l2(before["out0"], outputs(copy)["out0"]) > 0.1


def test_editing_the_original_leaves_the_aten_copy() -> None:
    program = aten_program()
    copy = program.copy()
    before = outputs(copy)
    with AtenGraph(program) as edit:
        for node in edit.calls(aten.relu.default):
            edit.replace(node, node.args[0])  # type: ignore[arg-type]
    assert relative_l2(before["out0"], outputs(copy)["out0"]) == 0


def test_a_copy_of_a_copy() -> None:
    program = aten_program()
    for _ in range(5):
        program = program.copy()
    assert relative_l2(outputs(aten_program())["out0"], outputs(program)["out0"]) == 0


def test_constants_are_shared_between_copies() -> None:
    """Two encoders of 100 MB at each of 20 steps would not fit."""
    program = aten_program()
    assert program.copy().aten.state_dict["net.weight"] is program.aten.state_dict["net.weight"]
    onnx = onnx_program()
    weights = [p.onnx.graph.initializers["w"].const_value for p in (onnx, onnx.copy())]
    assert weights[0] is weights[1]


def test_editing_a_copy_leaves_the_onnx_original() -> None:
    program = onnx_program()
    before, text = outputs(program), str(program.onnx)
    copy = program.copy()
    graph = copy.onnx.graph
    for node in graph:
        node.name = "renamed"
        node.metadata_props["a"] = "b"
        if node.op_type == "Mul":
            node.replace_input_with(1, add_initializer(graph, "v", np.full(3, 9, np.float32)))
    graph.inputs[0].name = "z"
    graph.outputs[0].shape = None
    graph.name = "other"
    del graph.initializers["w"]
    copy.onnx.opset_imports["com.microsoft"] = 1
    copy.onnx.metadata_props["c"] = "d"
    copy.onnx.ir_version = 10
    assert str(program.onnx) == text
    assert program.onnx.opset_imports == {"": 20}
    assert (program.onnx.ir_version, dict(program.onnx.metadata_props)) == (9, {})
    np.testing.assert_array_equal(outputs(program)["y"], before["y"])


# --- comparing -------------------------------------------------------------------------------------------------------


def test_relative_l2() -> None:
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    assert relative_l2(ones, ones) == 0
    assert relative_l2(ones, 1.1 * ones) == pytest.approx(0.1)
    assert relative_l2(ones, zeros) == 1
    assert relative_l2(zeros, zeros) == 0
    assert relative_l2(zeros, ones) == float("inf"), "something out of nothing"
    assert relative_l2(ones, np.ones((2, 2), np.float32)) == float("inf")
    assert np.isnan(relative_l2(ones, ones * np.nan))
    assert relative_l2(np.array([True, False]), np.array([True, True])) == 1
    assert relative_l2(np.array([0, 255], np.uint8), np.array([0, 0], np.uint8)) == 1, "no wrapping around"
    assert relative_l2(np.zeros((0, 3)), np.zeros((0, 3))) == 0
    assert relative_l2(np.full(4, 1e30, np.float32), np.full(4, 1e30, np.float32)) == 0, "squares fit in double"
