"""What is known before the model runs is computed before it runs."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import counts, initializer, node_named, parsed, rewritten, wrapped

from edgesam_deploy.passes.onnx import eliminate_identity, fold_constants

module = import_module("edgesam_deploy.passes.onnx.fold_constants")


@pytest.mark.parametrize(("rows", "left"), [(8192, {"Gather": 1}), (8193, {"Expand": 1, "Gather": 1})])
def test_the_largest_result_that_is_stored(rows: int, left: dict[str, int]) -> None:
    """64 Mi elements; of bytes here, to keep the test small."""
    program = parsed(f"""part (int64[1] x) => (uint8[1,8192] y)
        <uint8[1] one = {{1}}, int64[2] size = {{{rows}, 8192}}> {{ e = Expand(one, size) y = Gather(e, x) }}""")
    fold_constants(program)
    assert counts(program) == left


def test_a_quantised_weight_stays_one() -> None:
    """Dequantised, the file would be four times as large and no runtime would find its 8-bit layer."""
    program = parsed("""part (float[1,2,4,4] x) => (float[1,1,4,4] y)
        <int8[1,2,1,1] w = {3, -5}, float s = {0.5}, int8 z = {0}> { d = DequantizeLinear(w, s, z) y = Conv(x, d) }""")
    assert fold_constants(program) == 0
    assert counts(program) == {"DequantizeLinear": 1, "Conv": 1}


def test_a_constant_subgraph() -> None:
    after = rewritten(
        parsed("""
        part (float[2,12] x) => (float[3,8] y) <int64[1] last = {8}> {
            first = Constant<value_ints = [3]>()
            shape = Concat<axis = 0>(first, last)
            y = Reshape(x, shape)
        }"""),
        fold_constants,
        2,
    )
    assert counts(after) == {"Reshape": 1}
    np.testing.assert_array_equal(initializer(after, "shape_folded"), [3, 8])
    assert list(after.onnx.graph.initializers) == ["shape_folded"], "what it was made of is gone"


def test_a_transposed_weight() -> None:
    after = rewritten(
        parsed("""
        part (float[2,3] x) => (float[2,2] y) <float[2,3] w = {1, 2, 3, 4, 5, 6}> {
            wt = Transpose<perm = [1, 0]>(w)
            y = MatMul(x, wt)
        }"""),
        fold_constants,
        1,
    )
    np.testing.assert_array_equal(initializer(after, "wt_folded"), [[1, 4], [2, 5], [3, 6]])


def test_constants_alone_are_work_too() -> None:
    """Constant nodes become initialisers even where there is nothing else to fold."""
    after = rewritten(
        parsed("part (float[2] x) => (float[2] y) { two = Constant<value_float = 2.0>() y = Mul(x, two) }"),
        fold_constants,
        1,
    )
    assert counts(after) == {"Mul": 1}


def test_an_initializer_with_two_readers_stays_for_the_other() -> None:
    after = rewritten(
        parsed("""
        part (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            doubled = Add(w, w)
            z = Mul(x, doubled)
            y = Add(z, w)
        }"""),
        fold_constants,
        1,
    )
    assert set(after.onnx.graph.initializers) == {"w", "doubled_folded"}


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("", [2, 3, 4, 5]),
        ("<start = 1>", [3, 4, 5]),
        ("<end = 2>", [2, 3]),
        ("<start = -2>", [4, 5]),
        ("<start = 1, end = -1>", [3, 4]),
        ("<end = 99>", [2, 3, 4, 5]),
        ("<start = -99, end = 1>", [2]),
        ("<start = 3, end = 1>", []),
    ],
)
def test_shapes_that_are_static(attributes: str, expected: list[int]) -> None:
    after = rewritten(
        parsed(f"""
        part (float[2,3,4,5] x) => (float[2,3,4,5] y, float total) {{
            s = Shape{attributes}(x)
            f = Cast<to = 1>(s)
            total = ReduceSum<keepdims = 0>(f)
            y = Relu(x)
        }}"""),
        fold_constants,
        2,
    )
    assert counts(after) == {"ReduceSum": 1, "Relu": 1}
    np.testing.assert_array_equal(initializer(after, "f_folded"), np.array(expected, np.float32))


def test_the_static_part_of_a_dynamic_shape() -> None:
    after = rewritten(
        parsed("""
        part (float[batch,3,4] x) => (int64[2] known, int64[1] unknown, int64[3] whole) {
            a = Shape<start = 1>(x)
            known = Neg(a)
            b = Shape<start = 0, end = 1>(x)
            unknown = Neg(b)
            c = Shape(x)
            whole = Neg(c)
        }"""),
        fold_constants,
        1,
    )
    assert counts(after) == {"Neg": 3, "Shape": 2}
    np.testing.assert_array_equal(initializer(after, "a_folded"), [3, 4])


def test_a_shape_of_something_without_one() -> None:
    program = parsed("part (float[2,3] x) => (int64[2] y) { z = Relu(x) s = Shape(z) y = Neg(s) }", infer=False)
    rewritten(program, fold_constants, 0)


def test_outputs_keep_their_producers() -> None:
    """A graph output must come from a node, even if it is constant."""
    after = rewritten(
        parsed("""
        part (float[2,3] x) => (float[2,3] y, int64[2] shape, float[2] copy, float[2] constant) {
            shape = Shape(x)
            known = Cast<to = 1>(shape)
            all = ReduceProd<keepdims = 0>(known)
            y = Div(x, all)
            constant = Constant<value_floats = [1.0, 2.0]>()
            negative = Neg(constant)
            copy = Identity(negative)
        }"""),
        fold_constants,
        3,
    )
    assert counts(after) == {"Shape": 1, "Div": 1, "Constant": 1, "Identity": 1}
    assert [v.name for v in after.onnx.graph.outputs] == ["y", "shape", "copy", "constant"]


def test_nothing_to_fold() -> None:
    rewritten(
        parsed("part (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { z = Add(x, w) y = Relu(z) }"),
        fold_constants,
        0,
    )


def test_an_input_is_not_constant_even_with_a_default() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20]>
        part (float[2] x, float[2] w) => (float[2] y) { z = Neg(w) y = Add(x, z) }""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    rewritten(wrapped(model), fold_constants, 0)


@pytest.mark.parametrize("infer", [True, False], ids=["shape-known", "shape-unknown"])
def test_an_expand_must_not_turn_into_a_file(monkeypatch: pytest.MonkeyPatch, infer: bool) -> None:
    monkeypatch.setattr(module, "LIMIT", 100)
    after = rewritten(
        parsed(
            """
        part (float[40,5] x) => (float[40,5] y) <float[1,5] row = {1, 2, 3, 4, 5}, int64[2] shape = {40, 5}> {
            half = Neg(row)
            table = Expand(half, shape)
            y = Add(x, table)
        }""",
            infer=infer,
        ),
        fold_constants,
        1 if infer else 0,
    )
    assert counts(after)["Expand"] == 1
    assert all(v.const_value.size <= 5 for v in after.onnx.graph.initializers.values() if v.const_value is not None)


@pytest.mark.parametrize("op", ["RandomNormal", "RandomUniform"])
def test_random_numbers_are_not_constants(op: str) -> None:
    rewritten(
        parsed(f"part (float[2] x) => (float[2] y) {{ r = {op}<shape = [2]>() y = Add(x, r) }}"), fold_constants, 0
    )


def test_random_numbers_like_a_constant() -> None:
    program = parsed("""
        part (float[2] x) => (float[2] y) <float[2] w = {0.5, 0.5}> {
            a = RandomNormalLike(w)
            b = Bernoulli(w)
            c = Add(a, b)
            y = Add(x, c)
        }""")
    rewritten(program, fold_constants, 0)


IF = """
    part (float[2] x, bool flag) => (float[2] y) <float[2] w = {1, 2}> {
        outer = Neg(w)
        y = If (flag) <
            then_branch = yes () => (float[2] a) {
                two = Constant<value_floats = [2.0, 3.0]>()
                four = Mul(two, two)
                sum = Add(outer, four)
                a = Add(x, sum)
            },
            else_branch = no () => (float[2] b) { b = Mul(x, outer) }
        >
    }"""


def test_branches_are_left_to_themselves() -> None:
    """What they read from outside is folded; their own nodes stay; and so does an If of a constant."""
    after = rewritten(parsed(IF), fold_constants, 1)
    assert counts(after) == {"If": 1}
    branch = node_named(after, "If").attributes["then_branch"].as_graph()
    assert [n.op_type for n in branch] == ["Mul", "Add", "Add"]
    constant_if = parsed("""
        part (float[2] x) => (float[2] y) {
            yes = Constant<value_int = 1>()
            flag = Cast<to = 9>(yes)
            picked = If (flag) <
                then_branch = a () => (float[2] p) { p = Constant<value_floats = [1.0, 2.0]>() },
                else_branch = b () => (float[2] q) { q = Constant<value_floats = [3.0, 4.0]>() }
            >
            y = Add(x, picked)
        }""")
    assert counts(rewritten(constant_if, fold_constants, 2)) == {"If": 1, "Add": 1}


@pytest.mark.parametrize("text", [
    # a node's result, an initialiser, an input and a value inside a branch are called as the new constant would be
    "part (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { k = Neg(w) k_folded = Mul(x, k) y = Add(k_folded, k) }",
    "part (float[2] x) => (float[2] y) <float[1] k_folded = {1}> { k = Neg(k_folded) z = Mul(x, k) y = Add(z, z) }",
    "part (float[2] k_folded) => (float[2] y) <float[2] w = {1, 2}> { k = Neg(w) y = Mul(k_folded, k) }",
    """part (float[2] x, bool flag) => (float[2] y) <float[2] w = {1, 2}> {
        k = Neg(w)
        y = If (flag) <
            then_branch = yes () => (float[2] k_folded) { k_folded = Mul(x, k) },
            else_branch = no () => (float[2] b) { b = Add(x, k) }
        >
    }""",
], ids=["node", "initializer", "input", "branch"])  # fmt: skip
def test_names_that_are_taken(text: str) -> None:
    after = rewritten(parsed(text), fold_constants, 1)
    assert "k_folded_1" in after.onnx.graph.initializers


def test_optional_inputs_and_several_results() -> None:
    after = rewritten(
        parsed(
            """
        part (float[6] x) => (float[6] y) <float[6] w = {6, 1, 4, 2, 9, 3}, int64[1] k = {6}> {
            bounded = Clip(w, , five)
            values, places = TopK(bounded, k)
            left, right = Split<num_outputs = 2>(values)
            both = Concat<axis = 0>(right, left)
            shift = Cast<to = 1>(places)
            a = Add(x, both)
            y = Add(a, shift)
        }""".replace("{6}>", "{6}, float five = {5}>")
        ),
        fold_constants,
        5,
    )
    assert counts(after) == {"Add": 2}


def test_other_domains_are_not_ours() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>
        part (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { k = com.microsoft.Gelu(w) y = Add(x, k) }""")
    rewritten(wrapped(model), fold_constants, 0)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    st.lists(
        st.sampled_from(["Neg", "Abs", "Exp", "Floor", "Sqrt", "Sin", "Erf", "Sigmoid", "Softmax", "Gelu", "Not"]),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_any_chain_agrees_with_onnx_runtime(shape: tuple[int, ...], operators: list[str]) -> None:
    """The reference evaluator and ONNX Runtime compute the same, types included."""
    size = int(np.prod(shape))
    dims = ",".join(map(str, shape))
    numbers = ", ".join(f"{0.3 + 0.17 * i:.2f}" for i in range(size))
    lines, name = ["v0 = Abs(w)"], "v0"
    for i, op in enumerate(operators, start=1):
        if op == "Not":
            lines += [f"b{i} = Greater(v{i - 1}, half)", f"n{i} = Not(b{i})", f"v{i} = Cast<to = 1>(n{i})"]
        else:
            lines.append(f"v{i} = {op}(v{i - 1})" if op != "Sqrt" else f"p{i} = Abs({name}) v{i} = Sqrt(p{i})")
        name = f"v{i}"
    text = f"""part (float[{dims}] x) => (float[{dims}] y)
        <float[{dims}] w = {{{numbers}}}, float half = {{0.5}}> {{ {" ".join(lines)} y = Add(x, {name}) }}"""
    program = parsed(text)
    assert counts(rewritten(program, fold_constants, sum(counts(program).values()) - 1)) == {"Add": 1}


def test_then_identity() -> None:
    """Folding twice around identity elimination, as targets may."""
    program = parsed("""
        part (float[2,3] x) => (float[2,3] y) {
            s = Shape(x)
            z = Reshape(x, s)
            t = Shape(z)
            y = Expand(z, t)
        }""")
    after = rewritten(program, fold_constants, 2)
    assert counts(rewritten(after, eliminate_identity, 1)) == {"Expand": 1}
