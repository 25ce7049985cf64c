"""Shapes computed from static dimensions become constants, in one sweep, beside dimensions that are dynamic."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import counts, initializer, node_named, parsed, rewritten

from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.onnx import fold_shapes


def test_a_chain_of_reshapes_in_one_sweep() -> None:
    """Each target is computed from the result of the Reshape before."""
    links = "".join(
        f"""s{i} = Shape(v{i}) a{i} = Gather(s{i}, zero) b{i} = Gather(s{i}, one) u{i} = Unsqueeze(a{i}, axis)
        w{i} = Unsqueeze(b{i}, axis) t{i} = Concat<axis = 0>(w{i}, u{i}) v{i + 1} = Reshape(v{i}, t{i})\n"""
        for i in range(20)
    )
    text = f"""part (float[2,3] v0) => (float[p,q] y) <int64 zero = {{0}}, int64 one = {{1}}, int64[1] axis = {{0}}> {{
        {links} y = Neg(v20) }}"""
    program = parsed(text, infer=False)
    engine = Engine("fast")
    after = engine.run(program, (fold_shapes,))
    assert counts(after) == {"Reshape": 20, "Neg": 1}
    assert str(after.onnx.graph.outputs[0].shape) == "[2,3]"
    assert engine.run(after, (fold_shapes,)) is after


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("t = Shape<start = 1>(x) k = Identity(t)", [4, 5]),
        ("t = Shape<start = 1, end = -1>(x) k = Identity(t)", [4]),
        ("s = Shape(x) k = Gather(s, at)", [5, 4]),
        ("s = Shape(x) k = Slice(s, one, three)", [4, 5]),
        ("s = Shape(x) k = Slice(s, minus, three)", [5]),
        ("s = Shape(x) t = Slice(s, one, three) u = Cast<to = 6>(t) k = Cast<to = 7>(u)", [4, 5]),
        ("s = Shape<start = 1>(x) k = Add(s, one)", [5, 6]),
        ("s = Shape<start = 1>(x) k = Sub(one, s)", [-3, -4]),
        ("s = Shape<start = 1>(x) k = Mul(s, three)", [12, 15]),
        ("s = Shape<start = 1>(x) t = Sub(one, s) k = Div(t, two)", [-1, -2]),
        ("s = Shape<start = 2>(x) t = Squeeze(s, zero) k = Unsqueeze(t, zero)", [5]),
        ("s = Shape<start = 1>(x) k = Reshape(s, minus)", [4, 5]),
        ("s = Shape<start = 1>(x) t = Shape<start = 2>(x) k = Concat<axis = 0>(s, one, t)", [4, 5, 1, 5]),
        ("w = Transpose<perm = [2, 1, 0]>(x) s = Shape<end = 2>(w) k = Identity(s)", [5, 4]),
        ("s = Shape(x) t = Mul(s, two) k = Gather(t, at)", [10, 8]),  # the first is unknown, the others are not
        ("s = Shape<start = 1>(x) t = Div(s, minus) k = Identity(t)", [-4, -5]),
        ("s = Shape<start = 1>(x) t = Sub(one, s) k = Div(t, minus)", [3, 4]),
        ("s = Shape<start = 1>(x) t = Sub(two, s) k = Div(t, three)", [0, -1]),
        ("s = Shape(x) k = Slice(s, one, three, zero)", [4, 5]),
        ("s = Shape(x) k = Slice(s, one, three, zero, one)", [4, 5]),
        ("s = Shape(x) k = Slice(s, one, three, zero, )", [4, 5]),  # no steps given
        ("s = Shape<start = 1>(x) k = Gather<axis = -1>(s, zero)", [4]),
        ("w = Slice(x, zero, zero, one) q = Size(z) o = Unsqueeze(q, zero) k = Identity(o)", [6]),
    ],
)
def test_values(body: str, expected: list[int]) -> None:
    """x has one dynamic dimension; what does not depend on it is known."""
    text = f"""part (float[n,4,5] x, float[2,3] z) => (int64[{len(expected)}] y)
        <int64[2] at = {{2, -2}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1]
        three = {{3}},
         int64[1] minus = {{-1}}> {{ {body} y = Neg(k) }}"""
    program = parsed(text)
    assert fold_shapes(program.copy()) > 0
    after = rewritten(program, fold_shapes, fold_shapes(program.copy()))
    assert counts(after) == {"Neg": 1}
    (name,) = (v.name for v in next(iter(after.onnx.graph)).inputs if v is not None)
    np.testing.assert_array_equal(initializer(after, str(name)), expected)


@pytest.mark.parametrize(
    "body",
    [
        "k = Shape(x)",
        "s = Shape(x) k = Gather(s, zero)",
        "s = Shape(x) k = Slice(s, zero, two)",
        "s = Shape<end = 1>(x) k = Mul(s, two)",
        "s = Shape<end = 1>(x) k = Concat<axis = 0>(s, two)",
        "k = Gather(i, zero)",
        "s = Size(x) k = Unsqueeze(s, zero)",
        "k = Add(i, i)",
    ],
)
def test_what_depends_on_the_input_stays(body: str) -> None:
    text = f"""part (float[n,4,5] x, int64[3] i) => (int64[k] y) <int64[1] zero = {{0}}, int64[1] two = {{2}}> {{
        {body} y = Neg(k) }}"""
    rewritten(parsed(text), fold_shapes, 0)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("s = Shape<start = 1>(x) k = Slice(s, zero, three, zero, two)", {"Slice": 1}),  # in steps
        ("s = Shape<start = 1>(x) k = Slice(s, i, three)", {"Slice": 1}),
        ("s = Shape<start = 1>(x) k = Slice(s, zero, i)", {"Slice": 1}),
        ("s = Shape<start = 1>(x) k = Slice(s, zero, three, zero, i)", {"Slice": 1}),
        ("s = Shape<start = 1>(x) k = Gather(s, i)", {"Gather": 1}),
        ("s = Shape<start = 1>(x) k = Add(i, s)", {"Add": 1}),
        ("s = Shape<start = 1>(x) f = Cast<to = 1>(s) k = Cast<to = 7>(f)", {"Cast": 2}),  # fp32 holds no large integer
        ("s = Shape<start = 1>(x) k = Div(s, zero)", {"Div": 1}),  # whatever the runtime does
    ],
)
def test_what_is_computed_from_a_known_shape_but_not_itself_known(body: str, left: dict[str, int]) -> None:
    text = f"""part (float[n,4,5] x, int64[1] i) => (int64[k] y)
        <int64[1] zero = {{0}}, int64[1] two = {{2}}, int64[1] three = {{3}}> {{ {body} y = Neg(k) }}"""
    program = parsed(text)
    assert fold_shapes(program) == 1
    assert counts(program) == {**left, "Neg": 1}


def test_nodes_with_bodies_and_of_other_domains_are_no_sites() -> None:
    text = """part (float[2] x, bool f) => (float[2] y) {
        a = mine.Shape(x)
        y = If (f) <then_branch = t () => (float[2] b) { b = Exp(x) },
            else_branch = e () => (float[2] c) { c = Abs(x) }> }"""
    program = parsed(text, infer=False)
    assert fold_shapes(program) == 0


def test_places_out_of_range_are_the_runtimes_to_refuse() -> None:
    text = """part (float[n,4,5] x) => (int64[1] y) <int64[1] two = {2}> {
        s = Shape<start = 1>(x) k = Gather(s, two) y = Neg(k) }"""
    program = parsed(text, infer=False)
    fold_shapes(program)
    assert counts(program) == {"Gather": 1, "Neg": 1}


def test_a_matrix_of_integers_is_no_shape() -> None:
    """Gather and Concat of more than one axis go by axes that a list does not have."""
    text = """part (float[2,3] x) => (int64[2,4] y) <int64[2,2] m = {1, 2, 3, 4}> {
        a = Concat<axis = 1>(m, m) y = Neg(a) }"""
    rewritten(parsed(text), fold_shapes, 0)
    text = """part (float[2,3] x) => (int64[1,2] y) <int64[2,2] m = {1, 2, 3, 4}, int64[1] one = {1}> {
        a = Gather(m, one) y = Neg(a) }"""
    rewritten(parsed(text), fold_shapes, 0)


@pytest.mark.parametrize(
    ("text", "sites"),
    [
        ("part (float x) => (int64[64] y) <int64 one = {1}> { t = Add(table, one) y = Neg(t) }", 1),
        ("part (float x) => (int64[65] y) <int64 one = {1}> { t = Add(table, one) y = Neg(t) }", 0),
        ("part (float x) => (int64[64] y) <int64[1] one = {1}> { t = Add(one, table) y = Neg(t) }", 1),
        ("part (float x) => (int64[65] y) <int64[1] one = {1}> { t = Concat<axis = 0>(table, one) y = Neg(t) }", 0),
        ("part (float x) => (int64[64] y) <int64[1] one = {1}> { t = Concat<axis = 0>(table, one) y = Neg(t) }", 1),
    ],
)
def test_more_than_64_numbers_are_data(text: str, sites: int) -> None:
    size = int(text.partition("int64[")[2].partition("]")[0]) - ("Concat" in text)
    table = f", int64[{size}] table = {{{', '.join(map(str, range(size)))}}}>"
    rewritten(parsed(text.replace(">", table, 2).replace(f"={table}", "=>")), fold_shapes, sites)


def test_a_dimension_that_was_unknown_beside_one_that_stays_so() -> None:
    text = """part (float[n,4,5] x) => (int64[1] y) <int64[2] rows = {0, -1}> {
        r = Reshape(x, rows) w = Neg(r) s = Shape<start = 1>(w) k = Identity(s) y = Neg(k) }"""
    program = parsed(text, infer=False)
    assert fold_shapes(program) > 0
    assert counts(program) == {"Neg": 1}
    (name,) = (v.name for v in next(iter(program.onnx.graph)).inputs if v is not None)
    assert initializer(program, str(name)).tolist() == [20]


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), at=st.lists(st.integers(-4, 3), min_size=1, max_size=3)
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_any_places(sizes: list[int], at: list[int]) -> None:
    places = [p % len(sizes) - len(sizes) * (p < 0) for p in at]
    text = f"""part (float[{",".join(map(str, sizes))}] x) => (int64[{len(at)}] y)
        <int64[{len(at)}] at = {{{",".join(map(str, places))}}}> {{ s = Shape(x) k = Gather(s, at) y = Neg(k) }}"""
    assert counts(rewritten(parsed(text), fold_shapes, 2)) == {"Neg": 1}


def test_a_shape_that_is_an_output_is_computed() -> None:
    rewritten(parsed("part (float[2,3] x) => (int64[2] y) { y = Shape(x) }"), fold_shapes, 0)


def test_what_has_no_type_gets_no_constant() -> None:
    """Nor a shape: where types are missing nothing has been inferred yet."""
    text = "part (float[2,3] x) => (float[h,w] z, int64[2] y) { z = Neg(x) s = Shape(x) y = Abs(s) }"
    program = parsed(text, infer=False)
    program.onnx.graph.inputs[0].type = None
    assert fold_shapes(program) == 0
    assert counts(program) == {"Neg": 1, "Shape": 1, "Abs": 1}


@pytest.mark.parametrize("body", ["m = MatMul(x, x) y = Neg(m)", "s = SequenceConstruct(x) y = SequenceAt(s, i)"])
def test_shapes_that_cannot_be_inferred_are_no_sites(body: str) -> None:
    program = parsed(f"part (float[2,3] x, int64 i) => (float[h,w] y) {{ {body} }}", infer=False)
    assert fold_shapes(program) == 0


def test_a_rank_that_is_claimed_wrongly_is_the_files_matter() -> None:
    program = parsed("part (float[2,3] x) => (float[6] y) <int64[1] t = {6}> { m = Transpose(x) y = Reshape(m, t) }")
    node_named(program, "Transpose").outputs[0].shape = ir.Shape([None])
    assert fold_shapes(program) == 0
    assert str(node_named(program, "Transpose").outputs[0].shape) == "[None]"


def test_columns_of_a_matrix_are_no_piece_of_a_list() -> None:
    text = """part (float[2,3] x) => (int64[2,1] y)
        <int64[2,2] m = {1, 2, 3, 4}, int64[1] zero = {0}, int64[1] one = {1}> {
        s = Slice(m, zero, one, one) y = Neg(s) }"""
    rewritten(parsed(text), fold_shapes, 0)


@pytest.mark.parametrize(("size", "sites"), [(64, 1), (65, 0)])
def test_entries_of_a_table_of_data_stay(size: int, sites: int) -> None:
    table = ", ".join(map(str, range(size)))
    text = f"""part (float[n] x) => (int64[1] y) <int64[{size}] table = {{{table}}}, int64[1] three = {{3}}> {{
        k = Gather(table, three) y = Neg(k) }}"""
    rewritten(parsed(text), fold_shapes, sites)


def test_a_known_number_beside_unknown_ones() -> None:
    """The sum has as many elements as the unknown operand, which is not said before it is known."""
    text = """part (float[2,3] x, int64[2] i) => (int64[1,2] y) <int64[1] zero = {0}> {
        q = Size(x) %s u = Unsqueeze(c, zero) y = Neg(u) }"""
    for total in ("c = Add(q, i)", "c = Sub(i, q)"):
        rewritten(parsed(text % total), fold_shapes, 1)  # q


def test_elements_of_a_sequence() -> None:
    program = parsed("""part (float[2,3] x) => (float[2,3] y) <int64 zero = {0}> {
        s = SequenceConstruct(x, x) a = SequenceAt(s, zero) y = Neg(a) }""")
    node_named(program, "SequenceAt").outputs[0].shape = None
    assert fold_shapes(program) == 1
    assert str(node_named(program, "SequenceAt").outputs[0].shape) == "[2,3]"


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_rules_are_those_of_the_programs_opset(domain: str) -> None:
    """Squeeze takes its axes as an attribute below 13; under either name of ONNX's own domain."""
    program = parsed("part (float[1,3] x) => (float[3] y) { a = Squeeze<axes = [0]>(x) y = Neg(a) }", 11)
    program.onnx.opset_imports[domain] = program.onnx.opset_imports.pop("")
    node_named(program, "Squeeze").outputs[0].shape = None
    assert fold_shapes(program) == 1
