"""Names that are the same in every build, and nothing left of the tracer."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from passes.programs import parsed, rewritten, wrapped

from edgesam_deploy.contract import TensorSpec
from edgesam_deploy.passes.onnx import canonicalize_names
from edgesam_deploy.passes.program import Program


def node_names(program: Program) -> list[str | None]:
    return [node.name for node in program.onnx.graph]


def test_by_operator_and_position() -> None:
    program = parsed("part (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) c = Relu(b) y = Add(a, c) }")
    after = rewritten(program, canonicalize_names, 4)
    assert node_names(after) == ["Relu_0", "Neg_0", "Relu_1", "Add_0"]


def test_names_that_are_swapped() -> None:
    program = parsed("part (float[2] x) => (float[2] y) { a = Relu(x) y = Relu(a) }")
    for node, name in zip(program.onnx.graph, ["Relu_1", "Relu_0"], strict=True):
        node.name = name
    assert node_names(rewritten(program, canonicalize_names, 2)) == ["Relu_0", "Relu_1"]


def dirty() -> Program:
    """What PyTorch's exporter leaves: stack traces on nodes, the signature on values, docstrings."""
    program = parsed("""
        part (float[2] x, bool flag) => (float[2] y) <float[2] w = {1, 2}> {
            a = Add(x, w)
            y = If (flag) <
                then_branch = yes () => (float[2] p) { p = Neg(a) },
                else_branch = no () => (float[2] q) { q = Exp(a) }
            >
        }""")
    secret = 'File "/home/builder/edgesam_deploy/capture/parts.py", line 73, in forward'
    graph = program.onnx.graph
    branch = next(n for n in graph if n.op_type == "If").attributes["then_branch"].as_graph()
    for thing in [graph, *graph, *branch, *graph.inputs, *graph.initializers.values()]:
        thing.metadata_props["pkg.torch.onnx.stack_trace"] = secret
        thing.doc_string = secret
    for value in [v for node in [*graph, *branch] for v in node.outputs]:
        value.metadata_props["pkg.torch.onnx.original_node_name"] = secret
    return program


def test_no_paths_of_the_machine_that_built() -> None:
    before = dirty()
    assert b"/home/builder" in ir.to_proto(before.onnx).SerializeToString()
    after = rewritten(before, canonicalize_names, 8)  # two nodes, two inputs, one weight, three results
    data = ir.to_proto(after.onnx).SerializeToString()
    for word in (b"/home", b".py", b"File", b"pkg.torch", b"forward"):
        assert word not in data


def test_metadata_alone_is_work_too() -> None:
    program = rewritten(parsed("part (float[2] x) => (float[2] y) { y = Relu(x) }"), canonicalize_names, 1)
    program.onnx.graph.inputs[0].metadata_props["stack"] = "trace"
    after = rewritten(program, canonicalize_names, 1)
    assert not after.onnx.graph.inputs[0].metadata_props
    program.onnx.graph.outputs[0].doc_string = "trace"
    rewritten(program, canonicalize_names, 2)
    node = next(iter(program.onnx.graph))
    node.doc_string = "trace"
    rewritten(program, canonicalize_names, 3)
    node.doc_string = None
    node.metadata_props["stack"] = "trace"
    rewritten(program, canonicalize_names, 3)


def dynamic(dims: dict[str, list[str | int]], names: tuple[str | int, ...] = ("batch", "num_points", 2)) -> Program:
    """x of the tracer's dimensions through Relu nodes whose results claim ``dims``; the contract says ``names``."""
    float32, helper = onnx.TensorProto.FLOAT, onnx.helper
    steps = list(dims)
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in pairwise(steps)]
    info = {name: helper.make_tensor_value_info(name, float32, shape) for name, shape in dims.items()}
    inside = [info[n] for n in steps[1:-1]]
    graph = helper.make_graph(nodes, "part", [info[steps[0]]], [info[steps[-1]]], value_info=inside)
    program = wrapped(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))
    program.inputs = (TensorSpec("x", names),)
    return program


def shapes(program: Program) -> dict[str, list[str]]:
    graph = program.onnx.graph
    values = [*graph.inputs, *(v for node in graph for v in node.outputs)]
    return {
        str(v.name): [str(d.value) if isinstance(d, ir.SymbolicDim) else str(d) for d in v.shape or ()] for v in values
    }


def test_dynamic_dimensions_get_the_contracts_names() -> None:
    program = dynamic({"x": ["s77", "s55", 2], "a": ["s77", "s55", 2], "y": ["s77", "s55", 2]})
    assert set(map(tuple, shapes(rewritten(program, canonicalize_names, 5)).values())) == {("batch", "num_points", "2")}


@pytest.mark.parametrize(
    ("traced", "expected"),
    [
        ("s55 + 5", "num_points + 5"),
        ("8*s77", "8*batch"),
        ("s77*s55", "batch*num_points"),
        ("s77*(s55 + 5)", "batch*(num_points + 5)"),
        ("Max(1, s55)", "Max(1, num_points)"),
        ("((s55 + 6)//2)", "((num_points + 6)//2)"),
        ("s5", "s5"),  # another symbol that the name of this one begins
        ("s555", "s555"),
        ("u0", "u0"),
    ],
)
def test_expressions(traced: str, expected: str) -> None:
    program = dynamic({"x": ["s77", "s55", 2], "a": [traced, 2], "y": ["s77", "s55", 2]})
    canonicalize_names(program)
    assert shapes(program)["a"] == [expected, "2"]


def test_names_that_are_each_others() -> None:
    """Two symbols that swap must not become one."""
    program = dynamic({"x": ["b", "a", 2], "y": ["b", "a", 2]}, ("a", "b", 2))
    after = rewritten(program, canonicalize_names, 3)
    assert shapes(after) == {"x": ["a", "b", "2"], "y": ["a", "b", "2"]}


def test_static_inputs_and_unknown_shapes() -> None:
    program = parsed("part (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }", infer=False)
    rewritten(program, canonicalize_names, 2)


def test_initializers_in_the_order_of_use() -> None:
    program = parsed("""
        part (float[2] z) => (float[2] y)
        <float[2] c = {1, 2}, float[2] a = {3, 4}, float[2] b = {5, 6}, float most = {1}> {
            x = Clip(z, , most)
            p = Add(x, a)
            q = Mul(p, b)
            r = Sub(q, a)
            y = Div(r, c)
        }""")
    for index, node in enumerate(program.onnx.graph):
        node.name = ["Clip_0", "Add_0", "Mul_0", "Sub_0", "Div_0"][index]
    after = rewritten(program, canonicalize_names, 1)
    assert list(after.onnx.graph.initializers) == ["most", "a", "b", "c"]
    np.testing.assert_array_equal(after.onnx.graph.initializers["a"].const_value, [3, 4])


def test_initializers_of_branches_and_with_inputs_stay() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20]>
        part (float[2] x, bool flag, float[2] w) => (float[2] y) <float[2] u = {3, 4}, float[2] v = {1, 2}> {
            b = Add(x, u)
            a = Add(b, w)
            y = If (flag) <
                then_branch = yes () => (float[2] p) <float[2] inner = {7, 8}> { p = Mul(a, inner) },
                else_branch = no () => (float[2] q) { q = Mul(a, v) }
            >
        }""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    after = rewritten(wrapped(model), canonicalize_names, 4)  # three nodes, and the order
    assert list(after.onnx.graph.initializers) == ["v", "u", "w"], "v is read in a branch only"


def test_two_builds_give_the_same_bytes() -> None:
    def build() -> bytes:
        after = rewritten(dirty(), canonicalize_names, 8)
        return ir.to_proto(after.onnx).SerializeToString(deterministic=True)

    first = build()
    assert first == build()
    assert not re.search(rb"0x[0-9a-f]{6}", first)


def test_a_dimension_that_has_no_name() -> None:
    program = parsed("part (float[n,2] x) => (float[n,2] y) { a = Relu(x) y = Neg(a) }")
    next(iter(program.onnx.graph)).outputs[0].shape = ir.Shape([None, 2])
    after = rewritten(program, canonicalize_names, 2)
    shape = next(iter(after.onnx.graph)).outputs[0].shape
    assert shape is not None
    assert (shape.rank(), shape[1]) == (2, 2)
    assert isinstance(shape[0], ir.SymbolicDim)
    assert shape[0].value is None
