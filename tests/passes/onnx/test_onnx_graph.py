"""What the ONNX passes share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from passes.programs import parsed

from edgesam_deploy.passes.onnx.graph import add_initializer, constant, dims, replace_value, static_shape
from edgesam_deploy.passes.program import Program


def program() -> Program:
    return parsed("""
        part (float[n,3] x) => (float[n,3] y, float[n,3] z) <float[3] w = {1, 2, 3}> {
            c = Constant<value_float = 2.0>()
            a = Mul(x, c)
            b = Add(a, w)
            y = Neg(b)
            z = Relu(a)
        }""")


def values(program: Program) -> dict:  # type: ignore[type-arg]
    graph = program.onnx.graph
    results = {v.name: v for node in graph for v in node.outputs}
    return {**results, **graph.initializers, **{v.name: v for v in graph.inputs}}


def test_constant() -> None:
    found = values(program())
    np.testing.assert_array_equal(constant(found["w"]), [1, 2, 3])
    assert constant(found["c"]) == 2.0
    assert constant(found["x"]) is None
    assert constant(found["a"]) is None
    assert constant(None) is None


@pytest.mark.parametrize("array", [np.float32(3), np.zeros((2, 0), np.int64), np.ones((2, 3), bool), np.eye(3)[::-1].T])
def test_add_initializer(array: np.ndarray) -> None:  # type: ignore[type-arg]
    graph = program().onnx.graph
    array = np.asarray(array)
    names = [add_initializer(graph, name, array).name for name in ("new", "new", "w", "a", "x", "y")]
    assert names == ["new", "new_1", "w_1", "a_1", "x_1", "y_1"]
    tensor = graph.initializers["new"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.numpy().dtype == array.dtype
    assert tuple(tensor.shape) == array.shape


def test_names_of_nodes_added_in_between_are_taken() -> None:
    """Names are remembered between calls: a new node's must not be missed, nor those of another graph be taken."""
    graph = program().onnx.graph
    one = np.float32(1)
    assert add_initializer(graph, "new", one).name == "new"
    node = ir.node("Neg", [graph.inputs[0]])
    node.outputs[0].name = "later"
    graph.append(node)
    assert [add_initializer(graph, "later", one).name for _ in range(2)] == ["later_1", "later_2"]
    graph.remove(node)
    assert add_initializer(graph, "later", one).name == "later"
    assert add_initializer(program().onnx.graph, "new", one).name == "new"
    assert add_initializer(graph.clone(), "fresh", one).name == "fresh"
    assert add_initializer(graph, "fresh", one).name == "fresh"


def test_many_initializers_do_not_look_at_the_graph_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, looks = program().onnx.graph, []
    iterator = ir.traversal.RecursiveGraphIterator
    monkeypatch.setattr(ir.traversal, "RecursiveGraphIterator", lambda g: looks.append(g) or iterator(g))
    names = [add_initializer(graph, f"n{i % 50}", np.float32(i)).name for i in range(100)]
    assert len(set(names)) == 100
    assert len(looks) == 1


@pytest.mark.parametrize(
    ("old", "new", "possible"),
    [("b", "a", True), ("y", "b", True), ("y", "x", False), ("y", "w", False), ("y", "z", False), ("b", "x", True)],
)
def test_replace_value(old: str, new: str, possible: bool) -> None:
    before = program()
    found = values(before)
    assert replace_value(found[old], found[new]) is possible
    assert [v.name for v in before.onnx.graph.outputs] == ["y", "z"]
    if possible:
        assert not found[old].uses()
        assert found[new].is_graph_output() is (old == "y")


def test_shapes() -> None:
    found = values(program())
    assert static_shape(found["w"]) == (3,)
    assert static_shape(found["c"]) == ()
    assert static_shape(found["x"]) is None
    assert static_shape(None) is None
    assert dims(found["x"]) == ["n", "3"]
    assert dims(found["c"]) == []
    assert dims(None) is None
    found["a"].shape = None
    assert dims(found["a"]) is None
