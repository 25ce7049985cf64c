"""Equal nodes and equal constants become one."""

from __future__ import annotations

import pytest
from passes.programs import counts, parsed, rewritten

from edgesam_deploy.passes.onnx import eliminate_common


def test_equal_nodes() -> None:
    program = parsed("""
        part (float[2] x) => (float[2] y) {
            a = Relu(x) b = Relu(x)
            c = Exp(a) d = Exp(b)
            y = Add(c, d)
        }""")
    assert counts(rewritten(program, eliminate_common, 2)) == {"Relu": 1, "Exp": 1, "Add": 1}


def test_constants_come_first() -> None:
    """Two Unsqueeze differ only by which copy of their axes they read."""
    program = parsed("""
        part (float[2] x) => (float[1,2] y) <int64[1] i = {0}, int64[1] j = {0}> {
            a = Unsqueeze(x, i)
            b = Unsqueeze(x, j)
            y = Add(a, b)
        }""")
    after = rewritten(program, eliminate_common, 2)  # an initialiser and a node
    assert counts(after) == {"Unsqueeze": 1, "Add": 1}
    assert len(after.onnx.graph.initializers) == 1


def test_constants_alone() -> None:
    program = parsed("""
        part (float[2] x) => (float[2] y) <float[2] v = {1, 2}, float[2] w = {1, 2}> {
            a = Add(x, v)
            y = Mul(a, w)
        }""")
    assert len(rewritten(program, eliminate_common, 1).onnx.graph.initializers) == 1


@pytest.mark.parametrize(
    "body",
    [
        "a = Softmax<axis = 0>(x) b = Softmax<axis = 1>(x) y = Add(a, b)",
        "a = Sub(x, z) b = Sub(z, x) y = Add(a, b)",
        "a = RandomNormalLike(x) b = RandomNormalLike(x) y = Add(a, b)",
        "a = Add(x, i) b = Add(x, j) y = Add(a, b)",
        "a = Add(x, i) b = Add(x, k) y = Add(a, b)",
    ],
    ids=["attributes", "order", "random", "other values", "other shapes"],
)
def test_leaves_alone(body: str) -> None:
    program = parsed(f"""
        part (float[2,2] x, float[2,2] z) => (float[2,2] y)
        <float[2] i = {{1, 2}}, float[2] j = {{1, 3}}, float[1,2] k = {{1, 2}}> {{ {body} }}""")
    rewritten(program, eliminate_common, 0)


def test_equal_numbers_of_other_types() -> None:
    program = parsed("""
        part (float[1] x) => (float[1] y) <int64[1] i = {0}, float[1] f = {0}> {
            a = Add(x, f)
            y = Gather(a, i)
        }""")
    rewritten(program, eliminate_common, 0)


def test_two_outputs_stay_two() -> None:
    program = parsed("part (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Relu(x) }")
    after = rewritten(program, eliminate_common, 0)
    assert [v.name for v in after.onnx.graph.outputs] == ["y", "z"]


def test_an_output_that_is_computed_inside_as_well() -> None:
    program = parsed(
        "part (float[2] x) => (float[2] y, float[2] z) { a = Relu(x) y = Relu(x) b = Neg(a) z = Add(b, y) }"
    )
    after = rewritten(program, eliminate_common, 1)
    assert [v.name for v in after.onnx.graph.outputs] == ["y", "z"]


def test_large_constants_are_not_compared() -> None:
    """Weights do not repeat, and hashing them all costs seconds: 1024 elements is the limit."""
    numbers = ", ".join(["1"] * 1025)
    program = parsed(f"""
        part (float[1025] x) => (float[1025] y) <float[1025] v = {{{numbers}}}, float[1025] w = {{{numbers}}}> {{
            a = Add(x, v)
            y = Mul(a, w)
        }}""")
    rewritten(program, eliminate_common, 0)


def test_branches_are_left_to_themselves() -> None:
    program = parsed("""
        part (float[2] x, bool flag) => (float[2] y) {
            a = Relu(x)
            b = Relu(x)
            y = If (flag) <
                then_branch = yes () => (float[2] p) { c = Relu(x) p = Add(c, b) },
                else_branch = no () => (float[2] q) { q = Neg(a) }
            >
        }""")
    assert counts(rewritten(program, eliminate_common, 1)) == {"Relu": 1, "If": 1}
