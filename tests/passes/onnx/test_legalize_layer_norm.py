"""LayerNormalization behind a large Add is put out of reach of a slow fusion."""

from __future__ import annotations

import pytest
from passes.programs import counts, parsed, rewritten

from edgesam_deploy.passes.onnx import legalize_layer_norm
from edgesam_deploy.passes.program import Program


def program(
    rows: str = "1,1000", body: str = "", attributes: str = "<axis = -1, epsilon = 0.5>", outputs: str = ""
) -> Program:
    body = body or f"s = Add(x, z) y = LayerNormalization{attributes}(s, scale, bias)"
    return parsed(f"""
        part (float[{rows},4] x, float[{rows},4] z) => (float[{rows},4] y{outputs})
        <float[4] scale = {{1, 2, 3, 4}}, float[4] bias = {{0.5, 0.25, 2, 1}}> {{ {body} }}""")


@pytest.mark.parametrize("rows", ["1,1000", "2,500", "batch,1000", "batch,4096"])
@pytest.mark.parametrize("attributes", ["", "<axis = -1, epsilon = 0.5>"])
def test_large(rows: str, attributes: str) -> None:
    after = rewritten(program(rows, attributes=attributes), legalize_layer_norm, 1)
    assert counts(after) == {"Add": 1, "Unsqueeze": 1, "LayerNormalization": 1, "Squeeze": 1}
    assert [v.name for v in after.onnx.graph.outputs] == ["y"]


def test_inside_the_graph_with_several_readers() -> None:
    body = "s = Add(x, z) n = LayerNormalization(s, scale, bias) a = Relu(n) b = Neg(n) c = Mul(a, b) y = Sub(c, s)"
    after = rewritten(program(body=body), legalize_layer_norm, 1)
    squeeze = next(n for n in after.onnx.graph if n.op_type == "Squeeze")
    assert {user.op_type for user, _ in squeeze.outputs[0].uses()} == {"Relu", "Neg"}


def test_two_norms_of_one_sum() -> None:
    body = """s = Add(x, z) a = LayerNormalization(s, scale, bias) b = LayerNormalization<epsilon = 0.1>(s, bias, scale)
              y = Mul(a, b)"""
    assert counts(rewritten(program(body=body), legalize_layer_norm, 2))["Unsqueeze"] == 2


def test_norms_one_after_another() -> None:
    body = (
        """s = Add(x, z) a = LayerNormalization(s, scale, bias) t = Add(a, x) y = LayerNormalization(t, scale, bias)"""
    )
    rewritten(program(body=body), legalize_layer_norm, 2)


@pytest.mark.parametrize(
    ("rows", "body"),
    [
        ("1,999", ""),  # few rows: there the fusion pays
        ("num_points,6", ""),  # an unknown number counts as one
        ("1,1,1000", ""),  # rank 4 is not fused
        ("1,1000", "s = Mul(x, z) y = LayerNormalization(s, scale, bias)"),
        ("1,1000", "y = LayerNormalization(x, scale, bias)"),
    ],
    ids=["few", "unknown", "rank 4", "no Add", "an input"],
)
def test_leaves_alone(rows: str, body: str) -> None:
    rewritten(program(rows, body), legalize_layer_norm, 0)


def test_an_unknown_shape_is_left_alone() -> None:
    before = program()
    for node in before.onnx.graph:
        node.outputs[0].shape = None
    assert legalize_layer_norm(before) == 0


def test_a_norm_over_more_axes() -> None:
    text = """part (float[1,1000,2] x) => (float[1,1000,2] y) <float[2] scale = {1, 2}> {
        s = Add(x, x)
        w = Expand(scale, shape)
        y = LayerNormalization<axis = 1>(s, w)
    }""".replace("{1, 2}>", "{1, 2}, int64[2] shape = {1000, 2}>")
    rewritten(parsed(text), legalize_layer_norm, 0)


def test_statistics_that_are_read() -> None:
    """They would have one axis more."""
    body = "s = Add(x, z) y, mean = LayerNormalization(s, scale, bias)"
    rewritten(program(body=body, outputs=", float[1,1000,1] mean"), legalize_layer_norm, 0)
