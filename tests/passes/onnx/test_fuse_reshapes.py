"""A chain of shapes is one shape."""

from __future__ import annotations

import pytest
from passes.programs import counts, node_named, parsed, rewritten

from edgesam_deploy.passes.onnx import fuse_reshapes


def test_there_and_back_is_nothing() -> None:
    program = parsed("""part (float[1,4,2,2] x) => (float[1,4,2,2] y) <int64[1] a = {0}, int64[4] s = {1, 4, 2, 2}> {
        r = Relu(x) u = Unsqueeze(r, a) b = Reshape(u, s) y = Neg(b)
    }""")
    assert counts(rewritten(program, fuse_reshapes, 1)) == {"Relu": 1, "Neg": 1}


@pytest.mark.parametrize("length", [2, 3])
def test_a_chain_becomes_one_reshape(length: int) -> None:
    steps = ["u = Unsqueeze(x, a)", "y = Reshape(u, s)"] if length == 2 else [
        "u = Unsqueeze(x, a)", "v = Flatten(u)", "y = Reshape(v, s)"
    ]  # fmt: skip
    text = "part (float[2,6] x) => (float[3,4] y) <int64[1] a = {0}, int64[2] s = {3, 4}> {" + " ".join(steps) + "}"
    after = rewritten(parsed(text), fuse_reshapes, length - 1)
    assert counts(after) == {"Reshape": 1}
    assert list(node_named(after, "Reshape").outputs[0].shape or ()) == [3, 4]


def test_what_is_read_in_between_stays() -> None:
    program = parsed("""part (float[2,6] x) => (float[12] y, float[1,2,6] z) <int64[1] a = {0}, int64[1] s = {12}> {
        u = Unsqueeze(x, a) y = Reshape(u, s) z = Relu(u)
    }""")
    after = rewritten(program, fuse_reshapes, 1)
    assert counts(after) == {"Unsqueeze": 1, "Reshape": 1, "Relu": 1}
    reshape = node_named(after, "Reshape")
    assert [value.name for value in reshape.inputs[:1] if value is not None] == ["x"]


@pytest.mark.parametrize(
    "text",
    [
        "part (float[n,6] x) => (float[n,2,3] y) <int64[1] a = {0}, int64[3] s = {-1, 2, 3}> {"
        " u = Unsqueeze(x, a) y = Reshape(u, s) }",
        "part (float[2,6] x) => (float[1,2,6] u, float[12] y) <int64[1] a = {0}, int64[1] s = {12}> {"
        " u = Unsqueeze(x, a) y = Reshape(u, s) }",
        "part (float[2,6] x) => (float[12] y) <int64[1] s = {12}> { u = Relu(x) y = Reshape(u, s) }",
        "part (float[0,6] x) => (float[0,2,3] y) <int64[1] a = {0}, int64[3] s = {0, 2, 3}> {"
        " u = Unsqueeze(x, a) y = Reshape<allowzero = 1>(u, s) }",
    ],
    ids=["a dynamic shape", "an output in between", "no chain", "no elements"],
)
def test_left_alone(text: str) -> None:
    rewritten(parsed(text), fuse_reshapes, 0)
