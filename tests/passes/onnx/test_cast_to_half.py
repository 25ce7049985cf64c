"""Typing a program: which values become half, which stay fp32, and what half cannot hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from passes.programs import parsed

from edgesam_deploy.contract import sample_inputs
from edgesam_deploy.errors import PassError, UsageError
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.onnx import cast_to_half
from edgesam_deploy.passes.program import Program
from edgesam_deploy.passes.rounding import rounded

HALF = ir.DataType.FLOAT16


def typed(program: Program, kind: str = "fp16", **options: bool) -> Program:
    return Engine("fast").run(program, (cast_to_half(kind, **options),))  # type: ignore[arg-type]


def halves(program: Program) -> set[str]:
    """The operators that give half, Casts aside."""
    return {n.op_type for n in program.onnx.graph if n.outputs[0].dtype == HALF and n.op_type != "Cast"}


def with_roles(program: Program, **roles: str) -> Program:
    specs = tuple(replace(s, role=roles.get(s.name, s.role)) for s in program.inputs)  # type: ignore[arg-type]
    return replace(program, inputs=specs)


def test_products_are_half_and_norms_softmax_and_sums_are_not() -> None:
    before = parsed(
        """part (float[2,8,8] x) => (float[2,8,8] y) <float[8] scale = {1, 2, 3, 4, 5, 6, 7, 8}, int64[1] last = {-1}> {
            n = LayerNormalization(x, scale) k = MatMul(n, x) s = Softmax(k) v = MatMul(s, n)
            m = ReduceMean(v, last) d = Sub(v, m) y = Relu(d) }"""
    )
    assert halves(typed(before)) == {"MatMul", "Sub", "Relu"}
    assert halves(typed(before, fused_attention=True)) == {"MatMul", "Sub", "Relu", "Softmax"}
    after = typed(before)
    assert [v.dtype for v in (*after.onnx.graph.inputs, *after.onnx.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert [v.name for v in after.onnx.graph.outputs] == ["y"]


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_a_file_that_holds_halves_already(kind: str) -> None:
    """Its softmax gives half to a product; its inputs and outputs stay what they are."""
    ends = (f"x = Cast<to = {HALF.value}>(i)", "y = Cast<to = 1>(o)")
    body = "s = Softmax(x) o = MatMul(s, x)"
    if kind == "float32":
        text = f"part (float[2,8,8] i) => (float[2,8,8] y) {{ {ends[0]} {body} {ends[1]} }}"
    else:
        text = f"part (float16[2,8,8] x) => (float16[2,8,8] o) {{ {body} }}"
    before = parsed(text)
    after = typed(before)
    assert {n.op_type: n.outputs[0].dtype for n in after.onnx.graph if n.op_type in ("Softmax", "MatMul")} == {
        "Softmax": ir.DataType.FLOAT, "MatMul": HALF
    }  # fmt: skip
    first, *others = (
        [(value.name, value.dtype) for value in (*graph.inputs, *graph.outputs)]
        for graph in (before.onnx.graph, after.onnx.graph, rounded(after.onnx).graph)
    )
    assert others == [first, first]
    inputs = sample_inputs(before.inputs, 5)
    found = [next(iter(run_program(p, inputs).values())) for p in (before, after)]
    assert found[1].dtype == np.dtype(kind)
    assert relative_l2(*found) < 2e-3


def test_positions_keep_their_turns() -> None:
    """Coordinates up to 1,024 times many turns: in half the sine would be off by tenths."""
    text = """part (float[1,6,2] p, float[1,6,8] x) => (float[1,6,8] y)
        <float[2,8] turns = {9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6}, float two = {0.01953125}> {
            q = Mul(p, two) a = MatMul(q, turns) s = Sin(a) y = Add(s, x) }"""
    program = with_roles(parsed(text), p="coords")
    after = typed(program)
    assert halves(after) == {"Add"}
    inputs = sample_inputs(program.inputs, 5)
    assert relative_l2(run_program(program, inputs)["y"], run_program(after, inputs)["y"]) < 1e-3
    without = Engine("off").run(parsed(text), (cast_to_half("fp16"),))  # not told that p are coordinates
    assert relative_l2(run_program(program, inputs)["y"], run_program(without, inputs)["y"]) > 5e-3


def test_a_norm_in_pieces_stays_whole_between_its_sums() -> None:
    """The variance of values near 1,000 is beyond half, and the eps below it."""
    before = parsed(
        """part (float[2,64] x) => (float[2,64] y) <float thousand = {1000}, float eps = {0.000001}, float two = {2},
        int64[1] last = {-1}> {
            big = Mul(x, thousand) m = ReduceMean(big, last) d = Sub(big, m) q = Pow(d, two) v = ReduceMean(q, last)
            e = Add(v, eps) r = Sqrt(e) y = Div(d, r) }"""
    )
    after = typed(before)
    assert halves(after) == {"Mul", "Sub", "Div"}
    y = run_program(after, sample_inputs(before.inputs, 3))["y"]
    assert np.abs(y.std(-1) - 1).max() < 1e-2


def test_counts_are_not_half() -> None:
    """A mask of 300 x 300 pixels is a sum beyond 65,504."""
    before = parsed(
        """part (float[1,90000] x) => (float[1] y) <float none = {-100}, int64[1] last = {-1}, float part = {0.5}> {
            above = Greater(x, none) one = Cast<to = 1>(above) n = ReduceSum<keepdims = 0>(one, last)
            y = Mul(n, part) }"""
    )
    after = Engine("off").run(before, (cast_to_half("fp16"),))
    assert run_program(after, sample_inputs(before.inputs, 3))["y"].tolist() == [45000.0]
    assert not halves(after)


def test_a_weight_beyond_half_is_named() -> None:
    before = parsed("part (float[2,2] x) => (float[2,2] y) <float[2] large = {1, 70000}> { y = Mul(x, large) }")
    with pytest.raises(PassError, match=r"weight large holds 7e\+04, and fp16 ends at 65504; build with --precision"):
        typed(before)
    assert typed(before, "bf16").onnx.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_a_value_beyond_half_leaves_the_bound() -> None:
    """ONNX Runtime alone would compute it in fp32 and say nothing."""
    before = parsed("part (float[2,2] x) => (float[2,2] y) <float large = {60000}> { a = Mul(x, large) b = Mul(a, large) y = Div(b, large) }")  # fmt: skip  # noqa: E501
    with pytest.raises(PassError, match="left its bound"):
        typed(before)


def test_branches_read_fp32() -> None:
    before = parsed(
        """part (float[2,2] x, bool yes) => (float[2,2] y) {
            a = Mul(x, x)
            y = If (yes) <then_branch = t () => (float[2,2] p) { p = Relu(a) },
                          else_branch = e () => (float[2,2] q) { q = Neg(a) }> }"""
    )
    after = typed(before)
    assert halves(after) == {"Mul"}


@pytest.mark.parametrize(("kind", "step"), [("fp16", 2.0**-11), ("bf16", 2.0**-8)])
def test_what_is_rounded_is_what_the_type_holds(kind: str, step: float) -> None:
    before = parsed("part (float[4,64] x) => (float[4,64] y) { a = Exp(x) b = Add(a, x) y = Relu(b) }", opset=22)
    after = Engine("off").run(before, (cast_to_half(kind),))  # type: ignore[arg-type]
    inputs = sample_inputs(before.inputs, 1)
    exact, found = run_program(before, inputs)["y"], run_program(after, inputs)["y"]
    dtype = after.onnx.graph[-2].outputs[0].dtype
    assert dtype is not None
    np.testing.assert_array_equal(found, found.astype(dtype.numpy()).astype(np.float32))  # values of that type
    assert 0.05 * step < relative_l2(exact, found) < 2 * step
    copy = rounded(after.onnx)
    assert {v.dtype for node in copy.graph for v in node.outputs if node.op_type != "Cast"} == {ir.DataType.FLOAT}


def test_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="fp16 or bf16"):
        cast_to_half("fp8")  # type: ignore[arg-type]
