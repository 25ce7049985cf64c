"""Copies that broadcasting makes unnecessary go; those that somebody needs stay."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import counts, node_named, parsed, rewritten

from edgesam_deploy.passes.onnx import eliminate_expand
from edgesam_deploy.passes.program import Program


def program(body: str, output: str = "2,3,4", opset: int = 20) -> Program:
    return parsed(
        f"""part (float[2,3,1] x, float[2,3,4] z) => (float[{output}] y)
        <int64[3] wide = {{2, 3, 4}}, int64[3] four = {{1, 1, 4}}, int64[3] twice = {{1, 2, 4}}, float one = {{1}},
         float[4] row = {{1, 2, 3, 4}}> {{ {body} }}""",
        opset,
    )


@pytest.mark.parametrize(
    "body",
    [
        "e = Expand(x, wide) y = Add(e, z)",
        "e = Tile(x, four) y = Mul(z, e)",
        "e = Expand(x, wide) s = Sin(e) y = Mul(s, row)",
        "e = Expand(x, wide) q = Equal(e, one) f = Cast<to = 1>(q) y = Mul(f, row)",
        "e = Expand(x, wide) q = Equal(e, one) y = Where(q, z, row)",
        "e = Expand(x, wide) a = Sin(e) b = Neg(e) c = Add(a, b) y = Add(c, z)",
        "e = Expand(x, wide) a = Add(e, z) y = Sub(a, e)",
    ],
)
def test_readers_that_broadcast(body: str) -> None:
    before = program(body)
    after = rewritten(before, eliminate_expand, 1)
    left = counts(before)
    left.pop("Expand" if "Expand" in left else "Tile")
    assert counts(after) == left
    for node in after.onnx.graph:
        assert node.outputs[0].shape is not None


@pytest.mark.parametrize(
    "body",
    [
        "y = Expand(x, wide)",
        "e = Expand(x, wide) y = Sin(e)",  # a graph output would be smaller
        "e = Expand(x, wide) y = Softmax(e)",
        "e = Expand(x, wide) s = ReduceSum(e) y = Mul(z, s)",
        "e = Expand(x, wide) a = Add(e, z) s = Softmax(e) y = Add(a, s)",  # one reader of two
    ],
)
def test_somebody_would_notice(body: str) -> None:
    rewritten(program(body), eliminate_expand, 0)


def test_of_unknown_size_it_stays() -> None:
    text = """part (float[n,3,1] x, float[2,3,4] z) => (float[2,3,4] y) <int64[3] wide = {2, 3, 4}> {
        e = Expand(x, wide) y = Add(e, z) }"""
    program = parsed(text)
    expand = node_named(program, "Expand")
    expand.outputs[0].shape = ir.Shape([2, 3, 4])
    assert eliminate_expand(program) == 0


def test_repeats_that_are_known_at_run_time_only() -> None:
    before = parsed(
        """part (float[2,3,1] x, float[2,3,4] z, int64[3] n) => (float[2,3,4] y) { e = Tile(x, n) y = Add(e, z) }""", 20
    )
    before.onnx.graph[0].outputs[0].shape = ir.Shape([2, 3, 4])  # as files declare it
    assert eliminate_expand(before) == 0


def test_repeating_more_than_one_value_is_no_broadcast() -> None:
    text = "part (float[2] x, float[4] z) => (float[4] y) <int64[1] two = {2}> { e = Tile(x, two) y = Add(e, z) }"
    rewritten(parsed(text), eliminate_expand, 0)


def test_shapes_on_the_way_are_the_smaller_ones() -> None:
    after = rewritten(program("e = Expand(x, wide) s = Sin(e) y = Mul(s, row)"), eliminate_expand, 1)
    assert [str(n.outputs[0].shape) for n in after.onnx.graph] == ["[2,3,1]", "[2,3,4]"]


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), ones=st.integers(0, 15))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_any_axes(sizes: list[int], ones: int) -> None:
    small = [1 if ones >> i & 1 else n for i, n in enumerate(sizes)]
    a, b = (",".join(map(str, s)) for s in (small, sizes))
    text = f"""part (float[{a}] x, float[{b}] z) => (float[{b}] y) <int64[{len(sizes)}] s = {{{b}}}> {{
        e = Expand(x, s) n = Neg(e) y = Add(n, z) }}"""
    rewritten(parsed(text), eliminate_expand, int(small != sizes))
