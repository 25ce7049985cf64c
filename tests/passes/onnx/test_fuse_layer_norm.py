"""LayerNorm in pieces becomes one operator, over last axes or over channels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import counts, node_named, parsed, rewritten

from edgesam_deploy.passes.onnx import fuse_layer_norm
from edgesam_deploy.passes.program import Program

CENTRED = "m = ReduceMean(x, axes) c = Sub(x, m) "
VARIANCE = "q = Pow(c, two) v = ReduceMean(q, axes) e = Add(v, eps) "
SPELLINGS = {
    "sqrt": CENTRED + VARIANCE + "d = Sqrt(e) n = Div(c, d)",
    "eps first, square as product": CENTRED
    + "q = Mul(c, c) v = ReduceMean(q, axes) e = Add(eps, v) d = Sqrt(e) n = Div(c, d)",
    "reciprocal": CENTRED + VARIANCE + "d = Sqrt(e) r = Reciprocal(d) n = Mul(c, r)",
    "one over": CENTRED + VARIANCE + "d = Sqrt(e) r = Div(one, d) n = Mul(r, c)",
    "power": CENTRED + VARIANCE + "d = Pow(e, minus_half) n = Mul(c, d)",
    "axes said to be kept": (CENTRED + VARIANCE).replace("ReduceMean", "ReduceMean<keepdims = 1>")
    + "d = Sqrt(e) n = Div(c, d)",
    "root as power": CENTRED + VARIANCE + "d = Pow(e, half) n = Div(c, d)",
}


def program(body: str, shape: str = "2,5,4", axes: str = "-1", opset: int = 18, more: str = "") -> Program:
    count = axes.count(",") + 1
    return parsed(
        f"""part (float[{shape}] x) => (float[{shape}] y)
        <int64[{count}] axes = {{{axes}}}, float two = {{2}}, float eps = {{0.01}}, float one = {{1}}, float
        half = {{0.5}},
         float minus_half = {{-0.5}}, float[4] w = {{1, 2, 3, 5}}, float[4] b = {{4, 3, 2, 7}}, float s = {{3}}{more}>
        {{ {body} }}""",
        opset,
    )


def test_two_in_a_row() -> None:
    """The second reads what the first one's node becomes."""
    first = "m = ReduceMean(x, axes) c = Sub(x, m) q = Mul(c, c) v = ReduceMean(q, axes) e = Add(v, eps) d = Sqrt(e) "
    second = "k = ReduceMean(n, axes) f = Sub(n, k) g = Mul(f, f) h = ReduceMean(g, axes) i = Add(h, eps) j = Sqrt(i) "
    after = rewritten(program(f"{first} n = Div(c, d) {second} o = Div(f, j) y = Mul(o, w)"), fuse_layer_norm, 2)
    assert counts(after) == {"LayerNormalization": 2}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str) -> None:
    after = rewritten(program(SPELLINGS[spelling] + " p = Mul(n, w) y = Add(p, b)"), fuse_layer_norm, 1)
    assert counts(after) == {"LayerNormalization": 1}
    norm = node_named(after, "LayerNormalization")
    assert norm.attributes["axis"].as_int() == -1
    assert norm.attributes["epsilon"].as_float() == pytest.approx(0.01)
    scale, bias = (v.const_value for v in norm.inputs[1:] if v is not None)
    assert scale is not None
    assert bias is not None
    np.testing.assert_array_equal(scale.numpy(), [1, 2, 3, 5])
    np.testing.assert_array_equal(bias.numpy(), [4, 3, 2, 7])


@pytest.mark.parametrize(
    ("tail", "left"),
    [
        ("y = Identity(n)", {"LayerNormalization": 1, "Identity": 1}),
        ("y = Mul(w, n)", {"LayerNormalization": 1}),
        ("y = Mul(n, s)", {"LayerNormalization": 1}),  # one number is one for each channel
        ("y = Add(b, n)", {"LayerNormalization": 1}),
        ("p = Add(n, b) y = Mul(p, w)", {"LayerNormalization": 1, "Mul": 1}),
        ("p = Mul(n, x) y = Add(p, b)", {"LayerNormalization": 1, "Mul": 1, "Add": 1}),
        ("p = Mul(n, w) r = Add(p, b) y = Add(r, p)", {"LayerNormalization": 1, "Add": 2}),
        ("p = Mul(n, w) r = Mul(n, b) y = Add(r, p)", {"LayerNormalization": 1, "Mul": 2, "Add": 1}),
    ],
)
def test_scale_and_bias(tail: str, left: dict[str, int]) -> None:
    assert counts(rewritten(program(f"{SPELLINGS['sqrt']} {tail}"), fuse_layer_norm, 1)) == left


def test_scale_of_another_axis_stays_outside() -> None:
    body = SPELLINGS["sqrt"] + " y = Mul(n, rows)"
    found = program(body, shape="2,4,4", more=", float[4,1] rows = {1, 2, 3, 4}")
    assert counts(rewritten(found, fuse_layer_norm, 1)) == {"LayerNormalization": 1, "Mul": 1}


@pytest.mark.parametrize(
    ("shape", "perms"), [("2,4,3,5", ([0, 2, 3, 1], [0, 3, 1, 2])), ("2,4,3", ([0, 2, 1], [0, 2, 1]))]
)
def test_over_channels(shape: str, perms: tuple[list[int], list[int]]) -> None:
    ones = ",1" * (shape.count(",") - 1)
    more = f", float[4{ones}] cw = {{1, 2, 3, 5}}, float[1,4{ones}] cb = {{4, 3, 2, 7}}"
    body = SPELLINGS["sqrt"] + " p = Mul(cw, n) y = Add(p, cb)"
    after = rewritten(program(body, shape, "1", more=more), fuse_layer_norm, 1)
    assert [n.op_type for n in after.onnx.graph] == ["Transpose", "LayerNormalization", "Transpose"]
    first, _, last = after.onnx.graph
    assert (list(first.attributes["perm"].as_ints()), list(last.attributes["perm"].as_ints())) == perms


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("c = Sub(x, m)", "c = Sub(m, x)"),
        ("Pow(c, two)", "Pow(x, two)"),
        ("Pow(c, two)", "Pow(c, s)"),
        ("Pow(c, two)", "Mul(c, x)"),
        ("Pow(c, two)", "Mul(x, c)"),
        ("v = ReduceMean(q, axes)", "v = ReduceMean(q, others)"),
        ("v = ReduceMean(q, axes)", "v = ReduceMax(q, axes)"),
        ("v = ReduceMean(q, axes)", "v = ReduceMean(q)"),
        ("m = ReduceMean(x, axes)", "z = Exp(x) m = ReduceMean(z, axes)"),
        ("Add(v, eps)", "Mul(v, eps)"),
        ("Add(v, eps)", "Add(v, w)"),
        ("Div(c, d)", "Div(d, c)"),
        ("Div(c, d)", "Mul(c, d)"),
        ("d = Sqrt(e)", "d = Pow(e, two)"),
        ("d = Sqrt(e) n = Div(c, d)", "d = Sqrt(e) r = Div(half, d) n = Mul(c, r)"),
        ("d = Sqrt(e) n = Div(c, d)", "d = Pow(e, half) n = Mul(c, d)"),
        ("d = Sqrt(e) n = Div(c, d)", "d = Pow(e, minus_half) n = Div(c, d)"),
        ("d = Sqrt(e) n = Div(c, d)", "d = Sqrt(e) r = Reciprocal(d) n = Div(c, r)"),
        ("d = Sqrt(e) n = Div(c, d)", "d = Sqrt(e) r = Div(d, one) n = Mul(c, r)"),
    ],
)
def test_what_only_looks_like_it(old: str, new: str) -> None:
    assert old in SPELLINGS["sqrt"]
    body = SPELLINGS["sqrt"].replace(old, new) + " y = Identity(n)"
    rewritten(program(body, "4,4,4", more=", int64[1] others = {0}"), fuse_layer_norm, 0)


@pytest.mark.parametrize(("shape", "axes"), [("2,4,3,5", "2"), ("2,4,3", "0"), ("2,4,3,5", "1,2"), ("2,n,4", "1")])
def test_other_axes_stay(shape: str, axes: str) -> None:
    rewritten(program(SPELLINGS["sqrt"] + " y = Identity(n)", shape, axes), fuse_layer_norm, 0)


def test_older_opsets() -> None:
    text = """part (float[2,4] x) => (float[2,4] y) <float eps = {0.01}> {
        m = ReduceMean<axes = [1]>(x) c = Sub(x, m) q = Mul(c, c) v = ReduceMean<axes = [-1]>(q)
        e = Add(v, eps) d = Sqrt(e) y = Div(c, d) }"""
    rewritten(parsed(text, 16), fuse_layer_norm, 0)
    assert counts(rewritten(parsed(text, 17), fuse_layer_norm, 1)) == {"LayerNormalization": 1}


def test_means_that_drop_their_axis_are_others() -> None:
    text = """part (float[4,4] x) => (float[4,4] y) <float eps = {0.01}> {
        m = ReduceMean<axes = [1], keepdims = 0>(x) c = Sub(x, m) q = Mul(c, c)
        v = ReduceMean<axes = [1], keepdims = 0>(q) e = Add(v, eps) d = Sqrt(e) y = Div(c, d) }"""
    rewritten(parsed(text, 17), fuse_layer_norm, 0)


def test_doubles_stay() -> None:
    """The operator computes in fp32."""
    found = program(SPELLINGS["sqrt"] + " y = Identity(n)")
    for value in [*found.onnx.graph.inputs, *(v for n in found.onnx.graph for v in n.outputs)]:
        value.dtype = type(value.dtype).DOUBLE
    assert fuse_layer_norm(found) == 0


@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    kept=st.integers(1, 3),
    negative=st.booleans(),
    eps=st.sampled_from([1e-6, 1e-5, 1e-2]),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_any_trailing_axes(sizes: list[int], kept: int, negative: bool, eps: float) -> None:
    rank = len(sizes)
    axes = list(range(min(kept, rank - 1), rank))
    written = ",".join(str(a - rank if negative else a) for a in reversed(axes))
    body = SPELLINGS["sqrt"].replace("eps", "tiny") + " p = Mul(n, s) y = Add(p, s)"
    found = program(body, ",".join(map(str, sizes)), written, more=f", float tiny = {{{eps:.8f}}}")
    after = rewritten(found, fuse_layer_norm, 1)
    last = [n.op_type for n in after.onnx.graph]
    assert last.count("LayerNormalization") == 1
