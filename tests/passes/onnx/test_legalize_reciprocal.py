"""A Reciprocal is a division."""

from __future__ import annotations

from passes.programs import counts, node_named, parsed, rewritten

from edgesam_deploy.passes.onnx import legalize_reciprocal


def test_in_the_middle_and_at_the_end() -> None:
    program = parsed(
        "part (float[n,3] x) => (float[n,3] y) { a = Exp(x) b = Reciprocal(a) c = Add(a, b) y = Reciprocal(c) }"
    )
    after = rewritten(program, legalize_reciprocal, 2)
    assert counts(after) == {"Exp": 1, "Div": 2, "Add": 1}
    (output,) = after.onnx.graph.outputs
    assert output.name == "y"
    assert [str(d) for d in output.shape or ()] == ["n", "3"]


def test_in_double_precision() -> None:
    program = parsed(
        "part (float[2] x) => (float[2] y) { e = Exp(x) d = Cast<to = 11>(e) r = Reciprocal(d) y = Cast<to = 1>(r) }"
    )
    assert counts(rewritten(program, legalize_reciprocal, 1)) == {"Exp": 1, "Cast": 2, "Div": 1}


def test_nothing_to_do() -> None:
    rewritten(parsed("part (float[2] x) => (float[2] y) { y = Div(x, x) }"), legalize_reciprocal, 0)


def test_shapes_stay_as_known_as_they_were() -> None:
    program = parsed("part (float[n,3] x) => (float[n,3] y) { a = Exp(x) b = Reciprocal(a) y = Neg(b) }")
    after = rewritten(program, legalize_reciprocal, 1)
    assert [str(d) for d in node_named(after, "Div").outputs[0].shape or ()] == ["n", "3"]
    (reciprocal,) = (n for n in program.onnx.graph if n.op_type == "Reciprocal")
    reciprocal.outputs[0].shape = None
    after = rewritten(program, legalize_reciprocal, 1)
    assert node_named(after, "Div").outputs[0].shape is None


def test_a_value_of_unknown_type_is_left_alone() -> None:
    """The 1 would have to be of the same type."""
    text = "part (float[3] x) => (float[3] y) { b = Reciprocal(x) y = Neg(b) }"
    rewritten(parsed(text, infer=False), legalize_reciprocal, 0)
