"""What the ONNX passes share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from passes.programs import parsed

from edgesam_deploy.passes.onnx.graph import (
    add_initializer,
    add_node,
    constant,
    count_removed,
    dims,
    has_graphs,
    integers,
    is_standard,
    opset,
    rank,
    replace_value,
    scalar,
    static_shape,
)  # fmt: skip
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


def test_integers_and_scalars() -> None:
    graph = program().onnx.graph
    added = {
        str(kind): add_initializer(graph, "n", np.array([3], kind)) for kind in ("int64", "uint8", "float16", "bool")
    }
    assert {kind: scalar(value) for kind, value in added.items()} == {
        "int64": 3.0, "uint8": 3.0, "float16": 3.0, "bool": None,
    }  # fmt: skip
    assert [kind for kind, value in added.items() if integers(value) is not None] == ["int64", "uint8"]
    found = values(program())
    assert scalar(found["w"]) is None, "three numbers"
    assert scalar(found["x"]) is scalar(found["a"]) is scalar(None) is None
    assert integers(found["x"]) is integers(None) is None


def test_a_scalar_that_a_caller_may_replace_is_none() -> None:
    """An initialiser that is an input as well is only a default."""
    graph = program().onnx.graph
    value = add_initializer(graph, "default", np.float32(2))
    assert scalar(value) == 2
    graph.inputs.append(value)
    assert scalar(value) is None
    assert constant(value) is None


def test_add_node() -> None:
    """In front of the other one, named and typed after it unless something else is said."""
    before = program()
    graph, found = before.onnx.graph, values(before)
    other = found["b"].producer()
    assert other is not None
    first = add_node(other, "Exp", [found["a"]])
    second = add_node(other, "Not", [found["a"]], name="b_exp", dtype=ir.DataType.BOOL, shape=["n", 3])
    third = add_node(other, "Clip", [found["a"], None, found["c"]], {"x": 1})
    names = [node.outputs[0].name for node in graph]
    assert names == ["c", "a", "b_exp", "b_exp_1", "b_clip", "b", "y", "z"]
    assert (first.dtype, first.shape) == (ir.DataType.FLOAT, None)
    assert (second.dtype, str(second.shape)) == (ir.DataType.BOOL, "[n,3]")
    node = third.producer()
    assert node is not None
    assert (node.inputs, node.attributes["x"].as_int()) == ((found["a"], None, found["c"]), 1)
    assert add_initializer(graph, "b_clip", np.float32(1)).name == "b_clip_1", "its name is taken now"
    other.outputs[0].type = None
    assert add_node(other, "Exp", [found["a"]]).type is None


def test_what_a_node_is() -> None:
    text = """part (float[2] x, bool f) => (float[2] y) { a = Neg(x)
        y = If (f) <then_branch = t () => (float[2] b) { b = Exp(a) },
            else_branch = e () => (float[2] c) { c = Abs(a) }>
    }"""
    neg, branch = parsed(text).onnx.graph
    assert (has_graphs(neg), has_graphs(branch)) == (False, True)
    assert is_standard(neg)
    assert is_standard(neg, "Exp", "Neg")
    assert not is_standard(neg, "Exp")
    neg.domain = "ai.onnx"
    assert is_standard(neg, "Neg")
    neg.domain = "com.microsoft"
    assert not is_standard(neg, "Neg")
    assert not is_standard(neg)


def test_the_opset_under_both_names_of_the_domain() -> None:
    before = program()
    assert opset(before) == 20
    before.onnx.opset_imports["ai.onnx"] = before.onnx.opset_imports.pop("")
    assert opset(before) == 20
    del before.onnx.opset_imports["ai.onnx"]
    assert opset(before) == 1


def test_how_many_nodes_a_pass_removed() -> None:
    before = program()
    graph = before.onnx.graph
    add_node(graph[-1], "Exp", [graph.inputs[0]])
    add_node(graph[-1], "Exp", [graph.inputs[0]])
    assert count_removed(before, ir.passes.common.RemoveUnusedNodesPass()) == 2
    assert count_removed(before, ir.passes.common.RemoveUnusedNodesPass()) == 0


def test_shapes() -> None:
    assert [rank(v) for v in (values(program())["x"], values(program())["c"], None)] == [2, 0, None]
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
