"""Nodes that return their input."""

from __future__ import annotations

import pytest
from passes.programs import counts, parsed, rewritten

from edgesam_deploy.passes.onnx import eliminate_identity

HEAD = "part (float[2,3] x) => (float[2,3] y) <int64[2] shape = {2, 3}, int64[2] ones = {1, 1}>"
IDENTITIES = {
    "Identity": "b = Identity(a)",
    "Cast": "b = Cast<to = 1>(a)",
    "Transpose": "b = Transpose<perm = [0, 1]>(a)",
    "Tile": "b = Tile(a, ones)",
    "Expand": "b = Expand(a, shape)",
    "Expand to ones": "b = Expand(a, ones)",
    "Reshape": "b = Reshape(a, shape)",
    "Flatten": "b = Flatten(a)",
    "Flatten of the last axis": "b = Flatten<axis = -1>(a)",
    "several": "p = Identity(a) q = Identity(p) b = Cast<to = 1>(q)",
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_removes(case: str) -> None:
    program = parsed(f"{HEAD} {{ a = Relu(x) {IDENTITIES[case]} y = Neg(b) }}")
    sites = sum(counts(program).values()) - 2
    assert counts(rewritten(program, eliminate_identity, sites)) == {"Relu": 1, "Neg": 1}


CHANGES = {
    "Cast": "c = Cast<to = 7>(a) b = Cast<to = 1>(c)",
    "Transpose": "c = Transpose<perm = [1, 0]>(a) b = Transpose<perm = [1, 0]>(c)",
    "Transpose by default": "c = Transpose(a) b = Transpose(c)",
    "Reshape": "other = Constant<value_ints = [3, 2]>() c = Reshape(a, other) b = Reshape(c, shape)",
    "Squeeze": "axes = Constant<value_ints = [0]>() c = Unsqueeze(a, axes) b = Squeeze(c, axes)",
}


@pytest.mark.parametrize("case", CHANGES)
def test_leaves_alone(case: str) -> None:
    rewritten(parsed(f"{HEAD} {{ a = Relu(x) {CHANGES[case]} y = Neg(b) }}"), eliminate_identity, 0)


def test_tile_that_repeats() -> None:
    text = "part (float[2,3] x) => (float[4,3] y) <int64[2] r = {2, 1}> { a = Relu(x) y = Tile(a, r) }"
    rewritten(parsed(text), eliminate_identity, 0)


def test_tile_by_a_number_of_run_time() -> None:
    text = """part (float[2,3] x, int64[2] n) => (float[h,w] y) <int64[2] one = {1, 1}> {
        a = Abs(n)
        b = Min(a, one)
        c = Tile(x, b)
        y = Neg(c)
    }"""
    rewritten(parsed(text), eliminate_identity, 0)


def test_shapes_are_compared_by_symbol() -> None:
    program = parsed(
        """
        part (float[h,w] x) => (float[h,w] y, float[w,h] z) <float[h,w] same, float[w,h] other> {
            s = Shape(x)
            same = Reshape(x, s)
            y = Relu(same)
            a = Shape<start = 0, end = 1>(x)
            b = Shape<start = 1>(x)
            t = Concat<axis = 0>(b, a)
            other = Reshape(x, t)
            z = Relu(other)
        }""",
        infer=False,
    )
    after = rewritten(program, eliminate_identity, 2)
    assert counts(after) == {"Shape": 2, "Concat": 1, "Reshape": 1, "Relu": 2}


def test_unknown_dimensions_are_not_equal() -> None:
    text = "part (float[?,3] x, int64[2] s) => (float[?,3] y) { t = Abs(s) z = Expand(x, t) y = Relu(z) }"
    assert eliminate_identity(parsed(text, infer=False)) == 0


@pytest.mark.parametrize(
    ("body", "sites"),
    [
        ("y = Identity(x) z = Relu(x)", 0),  # an input cannot be an output
        ("a = Relu(x) y = Identity(a) z = Neg(a)", 1),  # its producer takes the name
        ("y = Relu(x) z = Identity(y)", 0),  # one value cannot be two outputs
        ("a = Relu(x) y = Identity(a) z = Identity(a)", 1),
        ("a = Relu(x) b = Identity(a) y = Identity(b) c = Identity(b) z = Neg(c)", 3),
        ("y = Identity(w) z = Add(x, w)", 0),  # an initialiser is not computed by anyone
        ("y = Identity(x) z = Neg(y)", 0),
    ],
)
def test_outputs(body: str, sites: int) -> None:
    program = parsed(f"part (float[2] x) => (float[2] y, float[2] z) <float[2] w = {{1, 2}}> {{ {body} }}")
    after = rewritten(program, eliminate_identity, sites)
    assert [v.name for v in after.onnx.graph.outputs] == ["y", "z"]


def test_readers_inside_a_branch() -> None:
    program = parsed("""
        part (float[2] x, bool flag) => (float[2] y) {
            a = Relu(x)
            b = Identity(a)
            y = If (flag) <
                then_branch = yes () => (float[2] p) { p = Neg(b) },
                else_branch = no () => (float[2] q) { r = Identity(b) q = Exp(r) }
            >
        }""")
    after = rewritten(program, eliminate_identity, 1)
    assert counts(after) == {"Relu": 1, "If": 1}
