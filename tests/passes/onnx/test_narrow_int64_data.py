"""int64 becomes int32 where ONNX allows it, and the file stays standard; or everywhere, and it does not."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from passes.programs import counts, parsed, rewritten

from edgesam_deploy.passes.onnx import narrow_int64_data
from edgesam_deploy.passes.onnx.narrow_int64_data import force_int32
from edgesam_deploy.passes.program import Program

INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64


def narrowed(text: str, sites: int, opset: int = 20) -> Program:
    after = rewritten(parsed(text, opset), narrow_int64_data, sites)
    onnx.checker.check_model(ir.to_proto(after.onnx), full_check=True)
    return after


def dtypes(program: Program) -> dict[str, ir.DataType | None]:
    return {n.op_type: n.outputs[0].dtype for n in program.onnx.graph}


def test_data_paths() -> None:
    after = narrowed(
        """part (int64[3] x) => (float[3] y) <int64 one = {1}> {
            a = Add(x, one) b = Mul(a, a) y = Cast<to = 1>(b) }""", 2,
    )  # fmt: skip
    assert [(n.op_type, n.outputs[0].dtype) for n in after.onnx.graph] == [
        ("Cast", INT32), ("Add", INT32), ("Mul", INT32), ("Cast", ir.DataType.FLOAT),
    ]  # fmt: skip


def test_constants_that_nobody_reads_any_more_go() -> None:
    after = narrowed("part (int64[3] x) => (float[3] y) <int64 one = {1}> { a = Add(x, one) y = Cast<to = 1>(a) }", 1)
    (constant,) = after.onnx.graph.initializers.values()
    assert constant.dtype == INT32


def test_an_input_whose_type_a_result_shares_stays() -> None:
    """Graphs that passes made share type objects between values; the input's must not change with the result's."""
    program = parsed("part (int64[3] x) => (float[3] y) { a = Add(x, x) b = Mul(a, x) y = Cast<to: int = 1>(b) }")
    (x,), nodes = program.onnx.graph.inputs, list(program.onnx.graph)
    for node in nodes[:2]:
        node.outputs[0].type = x.type
    after = rewritten(program, narrow_int64_data, 2)
    assert after.onnx.graph.inputs[0].dtype == INT64
    assert [n.outputs[0].dtype for n in after.onnx.graph][:3] == [INT32] * 3


def test_outputs_keep_name_and_type() -> None:
    after = narrowed("part (int64[3] x) => (int64[3] y, int64[3] z) { z = Neg(x) y = Abs(z) }", 2)
    assert [(v.name, v.dtype) for v in after.onnx.graph.outputs] == [("y", INT64), ("z", INT64)]
    assert counts(after) == {"Cast": 3, "Neg": 1, "Abs": 1}


def test_shapes_stay_int64() -> None:
    """Reshape takes nothing else; the data path before it is int32."""
    after = narrowed(
        """part (float[2,6] x) => (float[4,3] y) <int64[2] s = {2, 3}, int64[2] t = {2, 0}> {
            z = Cast<to = 7>(x) m = ReduceMax<keepdims = 0>(z) n = Mul(m, m) k = Sub(n, n) u = Add(s, t) v = Add(u, k)
            y = Reshape(x, v) }""", 6,
    )  # fmt: skip
    reshape = list(after.onnx.graph)[-1]
    assert reshape.inputs[1] is not None
    assert reshape.inputs[1].dtype == INT64
    assert {n.outputs[0].dtype for n in after.onnx.graph if n.op_type == "Add"} == {INT32}


def test_constants_that_must_be_int64_stay() -> None:
    rewritten(
        parsed("part (float[2,6] x) => (float[3,4] y) <int64[2] s = {3, 4}> { y = Reshape(x, s) }"),
        narrow_int64_data,
        0,
    )


def test_slices_to_the_end() -> None:
    """The largest integer means as far as it goes, in both types."""
    after = narrowed(
        """part (float[9] x) => (float[3] y)
        <int64[1] a = {6}, int64[1] b = {9223372036854775807}, int64[1] c = {0}, int64[1] d = {1}>
            { y = Slice(x, a, b, c, d) }""",
        1,
    )
    assert all(v.dtype == INT32 for v in next(iter(after.onnx.graph)).inputs[1:] if v is not None)


def test_slices_backwards_from_the_end() -> None:
    after = narrowed(
        """part (float[9] x) => (float[9] y)
        <int64[1] a = {9223372036854775807}, int64[1] b = {-9223372036854775807}, int64[1] c = {0}, int64[1] d = {-1}>
            { y = Slice(x, a, b, c, d) }""",
        1,
    )
    assert all(v.dtype == INT32 for v in next(iter(after.onnx.graph)).inputs[1:] if v is not None)


def test_any_number_of_operands() -> None:
    after = narrowed(
        """part (int64[3] x) => (float[7] y) <int64[1] one = {1}> {
            a = Neg(x) b = Concat<axis = 0>(a, one, a) y = Cast<to = 1>(b) }""", 2,
    )  # fmt: skip
    assert dtypes(after) == {"Cast": ir.DataType.FLOAT, "Neg": INT32, "Concat": INT32}


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_large_constants_stay(value: int) -> None:
    rewritten(
        parsed(f"part (int64[3] x) => (int64[3] y) <int64 big = {{{value}}}> {{ y = Add(x, big) }}"),
        narrow_int64_data,
        0,
    )


@pytest.mark.parametrize("value", [2**31 - 1, -(2**31)])
def test_the_largest_that_fit(value: int) -> None:
    narrowed(f"part (int64[3] x) => (bool[3] y) <int64 big = {{{value}}}> {{ y = Equal(x, big) }}", 1)


def test_results_that_are_int64_by_definition() -> None:
    after = narrowed(
        "part (float[4,5] x) => (float[4,4] y) { i = ArgMax<axis = 1, keepdims = 0>(x) y = Gather<axis = 1>(x, i) }", 1
    )
    assert dtypes(after) == {"ArgMax": INT64, "Cast": INT32, "Gather": ir.DataType.FLOAT}


def test_a_result_whose_type_an_attribute_says_that_is_not_rewritten() -> None:
    program = parsed(
        """part (float[2,5] x) => (float[2,3] y) {
            m = Multinomial<dtype = 7, sample_size = 3>(x) s = Add(m, m) y = Cast<to = 1>(s) }"""
    )
    assert narrow_int64_data(program) == 1
    assert dtypes(program)["Multinomial"] == INT64
    assert dtypes(program)["Add"] == INT32
    onnx.checker.check_model(ir.to_proto(program.onnx), full_check=True)


def test_types_in_attributes() -> None:
    after = narrowed(
        """part (float[2] x) => (float[2] y) <int64[1] n = {2}> {
            c = ConstantOfShape<value = int64[1] {3}>(n) i = Cast<to = 7>(x) s = Add(c, i) y = Cast<to = 1>(s) }""", 3,
    )  # fmt: skip
    assert {n.op_type: n.outputs[0].dtype for n in after.onnx.graph if n.op_type != "Cast"} == {
        "ConstantOfShape": INT32, "Add": INT32,
    }  # fmt: skip


def test_what_nested_graphs_read_is_int64() -> None:
    after = narrowed(
        """part (int64[2] x, bool f) => (int64[2] y) {
            a = Neg(x)
            y = If (f) <then_branch = p () => (int64[2] u) { u = Abs(a) }, else_branch = q () => (int64[2] v) {
            v = Mul(a, a) }>
        }""", 1,
    )  # fmt: skip
    assert counts(after) == {"Cast": 2, "Neg": 1, "If": 1}


@pytest.mark.parametrize(
    "text",
    [
        "part (int64[4] x) => (int64[k] y) { y = Unique(x) }",
        "part (float[2,3] x, int64[4] p, int64[2] a) => (float[r,c] y) { y = Pad(x, p, , a) }",
        "part (float[3] x) => (float[3] y) { i = Cast<to = 7>(x) y = Cast<to = 1>(i) }",  # nobody computes with it
    ],
)
def test_left_alone(text: str) -> None:
    program = parsed(text, infer=False)
    assert narrow_int64_data(program) == 0


def test_force() -> None:
    program = parsed(
        """part (float[2,6] x, int64[1] i) => (float[3,k] y, int64[1] j)
        <int64[2] s = {3, -1}, int64[1] e = {9223372036854775807}, int64[1] z = {0}> {
            r = Reshape(x, s) t = Slice(r, z, e, z) y = Gather<axis = 1>(t, i)
            c = Cast<to = 7>(i) j = Neg(c) }""", infer=False,
    )  # fmt: skip
    for node in program.onnx.graph:
        for value in node.outputs:
            value.dtype = INT64 if value.name in "cj" else ir.DataType.FLOAT
    assert force_int32(program.onnx) == 6  # i, j, c, and three constants
    proto = ir.to_proto(program.onnx)
    data = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert {a.dtype.name for a in data.values()} == {"int32"}
    assert data["e"].item() == 2**31 - 1
    assert [v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)] == [1, 6, 1, 6]
    assert [a.i for n in proto.graph.node if n.op_type == "Cast" for a in n.attribute] == [6]
    assert "not standard ONNX" in program.onnx.metadata_props["edgesam_deploy.int64"]
    assert force_int32(program.onnx) == 0


def test_force_leaves_other_types_alone() -> None:
    program = parsed("part (int64[3] x) => (float[3] y) { i = Add(x, x) y = Cast<to = 1>(i) }")
    assert force_int32(program.onnx) == 2  # x and i
    assert dtypes(program) == {"Add": INT32, "Cast": ir.DataType.FLOAT}
    (cast,) = (n for n in program.onnx.graph if n.op_type == "Cast")
    assert cast.attributes["to"].as_int() == ir.DataType.FLOAT


def test_force_refuses_to_change_a_value() -> None:
    program = parsed("part (int64[3] x) => (int64[3] y) <int64 big = {4294967296}> { y = Add(x, big) }")
    with pytest.raises(ValueError, match="constant big"):
        force_int32(program.onnx)


@pytest.mark.parametrize("value", [2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 1 - 2**63])
def test_force_holds_the_largest_and_int64s_ends(value: int) -> None:
    program = parsed(f"part (int64[1] x) => (int64[1] y) <int64[1] c = {{{value}}}> {{ y = Add(x, c) }}")
    force_int32(program.onnx)
    tensor = program.onnx.graph.initializers["c"].const_value
    assert tensor is not None
    assert tensor.numpy().tolist() == [max(min(value, 2**31 - 1), -(2**31))]


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2 - 2**63])
def test_force_refuses_just_beyond(value: int) -> None:
    program = parsed(f"part (int64[1] x) => (int64[1] y) <int64[1] c = {{{value}}}> {{ y = Add(x, c) }}")
    with pytest.raises(ValueError, match="constant c holds integers"):
        force_int32(program.onnx)


def test_force_reaches_constants_that_are_nodes() -> None:
    program = parsed(
        "part (int64[1] x) => (int64[1] y) { c = Constant<value = int64[1] {3}>() y = Add(x, c) }", infer=False
    )
    force_int32(program.onnx)
    assert [n.op_type for n in program.onnx.graph] == ["Add"]
    (constant,) = program.onnx.graph.initializers.values()
    assert constant.const_value is not None
    assert (constant.const_value.dtype, constant.const_value.numpy().tolist()) == (INT32, [3])


def test_force_leaves_the_value_that_a_pad_fills_in() -> None:
    """It is an attribute of the same name before opset 11, and a number."""
    program = parsed(
        """part (float[2] x, int64[2] i) => (float[4] y, int64[2] j) {
            y = Pad<pads = [1, 1], value = 0.5>(x) j = Neg(i) }""", 10,
    )  # fmt: skip
    assert force_int32(program.onnx) == 2
    assert next(iter(program.onnx.graph)).attributes["value"].as_float() == 0.5
