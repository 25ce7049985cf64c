"""What the reader says of a node beside its types: small constants, lists, and the pattern it is a part of."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import parser

from edgesam_deploy.ops.onnx_graph import read_onnx

HEADER = '<ir_version: 10, opset_import: ["": 17]>\n'


def uses(tmp_path: Path, text: str) -> dict:
    path = tmp_path / "m.onnx"
    onnx.save(parser.parse_model(HEADER + text), path)
    return {use.op: use for use in read_onnx(path).uses}


def test_small_constants_are_read_wherever_they_are_written(tmp_path: Path) -> None:
    found = uses(tmp_path, """net (float[2,3] x) => (float[4,3] y) <int64[2] a = {2, 1}> {
        t = Tile (x, a)  b = Constant <value_ints = [0, 1]> ()  y = ReduceSum (t, b)
    }""")  # fmt: skip
    assert found["Tile"].inputs[1].values == (2, 1)
    assert found["ReduceSum"].inputs[1].values == (0, 1)
    assert found["Tile"].inputs[0].values is None


def test_long_constants_and_matrices_are_not(tmp_path: Path) -> None:
    for elements, values in ((["1"] * 16 + ["2"], None), (["1"] * 17, (1.0,))):  # but for one and the same number
        text = f"net (float[17] x) => (float[17] y) <float[17] w = {{{', '.join(elements)}}}> {{ y = Add (x, w) }}"
        weights = uses(tmp_path, text)["Add"].inputs[1]
        assert weights.constant
        assert weights.values == values


def test_lists_are_attributes_too(tmp_path: Path) -> None:
    found = uses(tmp_path, "net (float[2,3] x) => (float[3,2] y) { y = Transpose <perm = [1, 0]> (x) }")
    assert found["Transpose"].attributes["perm"] == (1, 0)


GELU = "a = {0} (x, root)  b = Erf (a)  c = Add (b, one)  d = Mul (x, c)  y = Mul (d, half)"


@pytest.mark.parametrize(
    ("body", "pattern"),
    [
        (GELU.format("Div"), "Gelu"),
        (GELU.format("Mul"), "Gelu"),
        ("b = Erf (x)  y = Neg (b)", ""),
        ("a = Div (x, root)  b = Erf (a)  c = Add (b, one)  y = Neg (c)", ""),
        ("a = Div (x, root)  b = Erf (a)  c = Add (b, one)  d = Mul (x, c)  y = Add (d, b)", ""),
    ],
)
def test_the_erf_of_a_gelu(tmp_path: Path, body: str, pattern: str) -> None:
    weights = "<float root = {1.414}, float one = {1.0}, float half = {0.5}>"
    assert uses(tmp_path, f"net (float[2] x) => (float[2] y) {weights} {{ {body} }}")["Erf"].pattern == pattern
