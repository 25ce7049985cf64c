"""CastLike is a Cast."""

from __future__ import annotations

import onnx
import pytest
from passes.programs import counts, node_named, parsed, rewritten

from edgesam_deploy.passes.onnx import legalize_cast_like


@pytest.mark.parametrize("dtype", ["float", "int64", "bool"])
def test_the_type_of_the_second_operand(dtype: str) -> None:
    program = parsed(f"part (float[2,3] x, {dtype}[1] like) => ({dtype}[2,3] y) {{ y = CastLike(x, like) }}")
    after = rewritten(program, legalize_cast_like, 1)
    assert counts(after) == {"Cast": 1}
    expected = {"float": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64, "bool": onnx.TensorProto.BOOL}
    assert node_named(after, "Cast").attributes["to"].as_int() == expected[dtype]
    (output,) = after.onnx.graph.outputs
    assert (output.name, output.dtype, list(output.shape or ())) == ("y", expected[dtype], [2, 3])


def test_in_the_middle_with_several_readers() -> None:
    program = parsed("""
        part (int64[2] x, float[2] z) => (float[2] y) <int64 one = {1}> {
            a = CastLike(x, z)
            b = CastLike(one, z)
            c = Add(a, b)
            y = Mul(c, a)
        }""")
    after = rewritten(program, legalize_cast_like, 2)
    assert counts(after) == {"Cast": 2, "Add": 1, "Mul": 1}
    assert [n.outputs[0].name for n in after.onnx.graph] == ["a", "b", "c", "y"], "names stay"


def test_like_something_that_is_not_read_otherwise() -> None:
    program = parsed("part (float[2] x) => (int64[2] y) { s = Shape(x) y = CastLike(x, s) }")
    assert counts(rewritten(program, legalize_cast_like, 1)) == {"Shape": 1, "Cast": 1}


def test_an_unknown_type_is_left_alone() -> None:
    program = parsed("part (float[2] x) => (float[2] y) { z = Relu(x) y = CastLike(x, z) }", infer=False)
    rewritten(program, legalize_cast_like, 0)


def test_nothing_to_do() -> None:
    rewritten(parsed("part (float[2] x) => (int64[2] y) { y = Cast<to = 7>(x) }"), legalize_cast_like, 0)
