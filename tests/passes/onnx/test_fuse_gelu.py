"""GELU in pieces becomes one operator, however it is spelled; what only looks like it stays."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import counts, node_named, parsed, rewritten

from edgesam_deploy.passes.onnx import fuse_gelu
from edgesam_deploy.passes.program import Program

NUMBERS = """<float root = {1.4142135623730951}, float inverse = {0.7071067811865476}, float half = {0.5},
    float unit = {1}, float two = {2}, float three = {3}, float most = {0.7978845608028654}, float cubic = {0.044715},
    float[1] half1 = {0.5}, float[1,1,1,1] half4 = {0.5}, float far = {0.6}>"""
ERF = {
    "pytorch": "a = Div(x, root) e = Erf(a) s = Add(e, unit) p = Mul(x, s) y = Mul(p, half)",
    "half of x first": "a = Mul(x, inverse) e = Erf(a) s = Add(unit, e) h = Mul(half, x) y = Mul(h, s)",
    "half of the sum": "a = Mul(inverse, x) e = Erf(a) s = Add(e, unit) h = Mul(s, half) y = Mul(x, h)",
    "divided by two": "a = Div(x, root) e = Erf(a) s = Add(e, unit) p = Mul(s, x) y = Div(p, two)",
    "distributed": "a = Div(x, root) e = Erf(a) h = Mul(e, half) s = Add(h, half) y = Mul(x, s)",
    "minus a minus": "a = Div(x, root) e = Erf(a) n = Neg(e) s = Sub(unit, n) p = Mul(x, s) y = Mul(p, half1)",
}
TANH = {
    "pow": "c = Pow(x, three) d = Mul(c, cubic) i = Add(x, d) a = Mul(i, most) t = Tanh(a) s = Add(t, unit) "
    "h = Mul(x, half) y = Mul(h, s)",
    "products": "q = Mul(x, x) c = Mul(x, q) d = Mul(cubic, c) i = Add(d, x) a = Mul(most, i) t = Tanh(a) "
    "s = Add(unit, t) p = Mul(x, s) y = Mul(half, p)",
    "x outside": "q = Pow(x, two) d = Mul(q, cubic) i = Add(d, unit) f = Mul(x, most) a = Mul(f, i) t = Tanh(a) "
    "s = Add(t, unit) p = Mul(x, s) y = Mul(p, half)",
}


def program(body: str, opset: int = 20, shape: str = "2,3") -> Program:
    return parsed(f"part (float[{shape}] z) => (float[{shape}] y) {NUMBERS} {{ x = Sin(z) {body} }}", opset)


@pytest.mark.parametrize("spelling", ERF)
def test_with_erf(spelling: str) -> None:
    after = rewritten(program(ERF[spelling]), fuse_gelu, 1)
    assert counts(after) == {"Sin": 1, "Gelu": 1}
    assert node_named(after, "Gelu").attributes["approximate"].as_string() == "none"


@pytest.mark.parametrize("spelling", TANH)
def test_with_tanh(spelling: str) -> None:
    after = rewritten(program(TANH[spelling]), fuse_gelu, 1)
    assert counts(after) == {"Sin": 1, "Gelu": 1}
    assert node_named(after, "Gelu").attributes["approximate"].as_string() == "tanh"


@pytest.mark.parametrize(
    "body",
    [
        ERF["pytorch"].replace("p, half", "p, far"),  # onnxsim folds the half into the next weights
        ERF["pytorch"].replace("x, root", "x, two"),
        ERF["pytorch"].replace("e, unit", "e, two"),
        ERF["pytorch"].replace("Add(e, unit)", "Sub(e, unit)"),
        ERF["pytorch"].replace("Mul(x, s)", "Mul(z, s)"),  # times something else
        ERF["pytorch"].replace("Mul(x, s)", "Div(s, x)"),
        TANH["pow"].replace("x, three", "x, two"),
        TANH["pow"].replace("c, cubic", "c, half"),
        TANH["pow"].replace("i, most", "i, far"),
        TANH["pow"].replace("Tanh(a)", "Erf(a)"),
        ERF["pytorch"].replace("Erf(a)", "Tanh(a)"),
    ],
)
def test_what_only_looks_like_it(body: str) -> None:
    rewritten(program(body), fuse_gelu, 0)


def test_before_there_is_such_an_operator() -> None:
    rewritten(program(ERF["pytorch"], opset=19), fuse_gelu, 0)


def test_a_constant_of_more_axes_would_add_axes() -> None:
    body = "a = Div(x, root) e = Erf(a) s = Add(e, unit) p = Mul(x, s) y = Mul(p, half4)"
    text = f"part (float[2,3] z) => (float[1,1,2,3] y) {NUMBERS} {{ x = Sin(z) {body} }}"
    rewritten(parsed(text), fuse_gelu, 0)
    assert counts(rewritten(program(body, shape="1,1,2,3"), fuse_gelu, 1)) == {"Sin": 1, "Gelu": 1}


def test_pieces_that_others_read_stay() -> None:
    text = f"part (float[2] x) => (float[2] y, float[2] s) {NUMBERS} {{ {ERF['pytorch']} }}"
    after = rewritten(parsed(text), fuse_gelu, 1)
    assert counts(after) == {"Div": 1, "Erf": 1, "Add": 1, "Gelu": 1}


def test_x_is_a_sum_itself() -> None:
    """The pattern ends at x, though x is arithmetic too."""
    text = f"part (float[2] z) => (float[2] y) {NUMBERS} {{ w = Mul(z, two) x = Add(w, unit) {ERF['pytorch']} }}"
    assert counts(rewritten(parsed(text), fuse_gelu, 1)) == {"Mul": 1, "Add": 1, "Gelu": 1}


@given(
    spellings=st.lists(st.sampled_from([*ERF.values(), *TANH.values()]), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 3), max_size=5),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_several_of_any_rank(spellings: list[str], sizes: list[int]) -> None:
    lines, value = [], "z"
    for i, body in enumerate(spellings):
        words = ["a", "e", "s", "p", "h", "y", "c", "d", "i", "t", "q", "f", "n"]
        for word in [*words, "x"]:
            new = value if word == "x" else f"{word}{i}"
            body = (
                body.replace(f"({word},", f"({new},").replace(f" {word})", f" {new})").replace(f"({word})", f"({new})")
            )
            body = f" {body}".replace(f" {word} =", f" {new} =").strip()
        lines.append(body)
        value = f"y{i}"
    shape = ",".join(map(str, sizes))
    kind = f"float[{shape}]" if sizes else "float"
    numbers = NUMBERS.replace("float[1] half1", "float half1")  # a constant of one axis would give a scalar one
    after = parsed(f"part ({kind} z) => ({kind} y) {numbers} {{ {' '.join(lines)} y = Sin({value}) }}")
    assert counts(rewritten(after, fuse_gelu, len(spellings))) == {"Gelu": len(spellings), "Sin": 1}


def test_the_end_of_one_in_a_branch_stays() -> None:
    """What stands there would have to be named apart from both graphs."""
    text = f"""part (float[2] x, bool g) => (float[2] y) {NUMBERS} {{
        a = Div(x, root) e = Erf(a) s = Add(e, unit) p = Mul(x, s)
        y = If (g) <then_branch = t () => (float[2] b) {{ b = Mul(p, half) }},
            else_branch = f () => (float[2] c) {{ c = Mul(p, far) }}> }}"""
    rewritten(parsed(text), fuse_gelu, 0)
