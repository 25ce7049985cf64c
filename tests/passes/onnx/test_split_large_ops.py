"""Large products and convolutions in pieces."""

from __future__ import annotations

import pytest
from passes.programs import counts, parsed, rewritten

from edgesam_deploy.passes.onnx import split_large_ops
from edgesam_deploy.passes.program import Program

W = "1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6"


def program(body: str, output: str, x: str = "2,3", w: str = "3,4", bias: str = "4") -> Program:
    b = ", ".join("1234"[: 1 if bias in ("", "1") else 4])
    return parsed(
        f"part (float[{x}] x) => (float[{output}] y) <float[{w}] w = {{{W}}}, float[{bias}] b = {{{b}}}> {{ {body} }}"
    )


@pytest.mark.parametrize(
    ("body", "kind", "output", "x", "w"),
    [
        ("y = MatMul(x, w)", "MatMul", "2,4", "2,3", "3,4"),
        ("y = MatMul(x, w)", "MatMul", "5,2,4", "5,2,3", "3,4"),
        ("y = Gemm(x, w, b)", "Gemm", "2,4", "2,3", "3,4"),
        ("y = Gemm<transB = 1, alpha = 2.0>(x, w, b)", "Gemm", "2,4", "2,3", "4,3"),
        ("y = Conv(x, w, b)", "Conv", "1,4,2,2", "1,3,2,2", "4,3,1,1"),
        ("y = Conv(x, w)", "Conv", "1,4,2,2", "1,3,2,2", "4,3,1,1"),
        ("y = Conv(x, w, )", "Conv", "1,4,2,2", "1,3,2,2", "4,3,1,1"),
        ("y = Conv<group = 1>(x, w)", "Conv", "1,4,2,2", "1,3,2,2", "4,3,1,1"),
    ],
)
@pytest.mark.parametrize(("parts", "rest"), [(2, 0), (3, 1), (4, 0)])
def test_along_output_channels(body: str, kind: str, output: str, x: str, w: str, parts: int, rest: int) -> None:
    size = 4
    for d in output.split(","):
        size *= int(d)
    size = max(48, size)  # the weight has 48 bytes
    channels = {2: 2, 3: 1, 4: 1}[parts]
    after = rewritten(program(body, output, x, w), split_large_ops(size * channels // 4), 1)
    assert counts(after) == {kind: 4 // channels, "Concat": 1}


def test_what_fits_stays() -> None:
    rewritten(program("y = MatMul(x, w)", "2,4"), split_large_ops(48), 0)
    rewritten(program("y = MatMul(x, w)", "2,4"), split_large_ops(47), 1)


def test_a_result_may_be_what_is_large() -> None:
    rewritten(program("y = MatMul(x, w)", "9,4", "9,3"), split_large_ops(143), 1)
    rewritten(program("y = MatMul(x, w)", "9,4", "9,3"), split_large_ops(144), 0)


def test_a_bias_for_all_is_shared() -> None:
    after = rewritten(program("y = Gemm(x, w, b)", "2,4", bias="1"), split_large_ops(24), 1)
    assert {n.inputs[2].name for n in after.onnx.graph if n.op_type == "Gemm" and n.inputs[2] is not None} == {"b"}


def test_smaller_than_one_channel() -> None:
    assert counts(rewritten(program("y = MatMul(x, w)", "2,4"), split_large_ops(1), 1)) == {"MatMul": 4, "Concat": 1}


@pytest.mark.parametrize(
    "text",
    [
        """part (float[1,4,2,2] x) => (float[1,4,2,2] y)
            <float[4,2,1,1] w = {1,2,3,4,5,6,7,8}> { y = Conv<group = 2>(x, w) }""",
        "part (float[2,12] x) => (float[2] y) <float[12] w = {1,2,3,4,5,6,7,8,9,1,2,3}> { y = MatMul(x, w) }",
        "part (float[2,3] x, float[3,4] v) => (float[2,4] y) { y = MatMul(x, v) }",
        """part (float[2,3] x, float[4] c) => (float[2,4] y)
            <float[3,4] w = {1,2,3,4,5,6,7,8,9,1,2,3}> { y = Gemm(x, w, c) }""",
        "part (float[2,1,3] x) => (float[2,1,2] y) <float[2,3,2] w = {1,2,3,4,5,6,7,8,9,1,2,3}> { y = MatMul(x, w) }",
    ],
)
def test_left_alone(text: str) -> None:
    rewritten(parsed(text), split_large_ops(8), 0)


@pytest.mark.parametrize("op", ["MatMul(x, w)", "Gemm(x, w)"])
def test_a_result_of_unknown_shape(op: str) -> None:
    """The weight says what there is to cut."""
    text = f"part (float[2,3] x) => (float[2,4] y) <float[3,4] w = {{{W}}}> {{ m = {op} y = Neg(m) }}"
    after = rewritten(parsed(text, infer=False), split_large_ops(24), 1)
    assert [n.outputs[0].shape is None for n in after.onnx.graph] == [True, True, True, False]
