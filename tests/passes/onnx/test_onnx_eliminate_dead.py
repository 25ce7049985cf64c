"""What nobody reads, in every drawer of the file."""

from __future__ import annotations

import onnx
from passes.programs import counts, parsed, rewritten, wrapped

from edgesam_deploy.passes.onnx import eliminate_dead


def test_dead_nodes_and_what_only_they_read() -> None:
    program = parsed("""
        part (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}> {
            y = Add(x, w)
            a = Mul(y, v)
            b = Exp(a)
        }""")
    after = rewritten(program, eliminate_dead, 3)  # two nodes, one initialiser
    assert counts(after) == {"Add": 1}
    assert set(after.onnx.graph.initializers) == {"w"}


def test_an_initializer_alone() -> None:
    program = parsed("part (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Relu(x) }")
    assert not rewritten(program, eliminate_dead, 1).onnx.graph.initializers


def test_an_opset_alone() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1, "pkg.torch" : 1]>
        part (float[2] x) => (float[2] y) { y = Relu(x) }""")
    assert dict(rewritten(wrapped(model), eliminate_dead, 2).onnx.opset_imports) == {"": 20}


def test_a_function_alone() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20, "mine" : 1]>
        part (float[2] x) => (float[2] y) { y = mine.used(x) }
        <domain: "mine", opset_import: ["" : 20]> used (a) => (b) { b = Relu(a) }
        <domain: "mine", opset_import: ["" : 20]> unused (a) => (b) { b = Neg(a) }""")
    after = rewritten(wrapped(model), eliminate_dead, 1)
    assert [key[1] for key in after.onnx.functions] == ["used"]


def test_inputs_stay() -> None:
    program = parsed("part (float[2] x, float[3] unread) => (float[2] y) { y = Relu(x) }")
    after = rewritten(program, eliminate_dead, 0)
    assert [v.name for v in after.onnx.graph.inputs] == ["x", "unread"]


def test_a_result_that_is_one_of_two() -> None:
    """Split has two results, one is read: it is alive."""
    program = parsed("part (float[4] x) => (float[2] y) { a, b = Split<num_outputs = 2>(x) y = Relu(b) }")
    rewritten(program, eliminate_dead, 0)


def test_what_a_branch_reads_is_alive() -> None:
    program = parsed("""
        part (float[2] x, bool flag) => (float[2] y) <float[2] w = {1, 2}> {
            a = Neg(w)
            dead = Exp(a)
            y = If (flag) <
                then_branch = yes () => (float[2] p) { p = Add(x, a) },
                else_branch = no () => (float[2] q) { q = Relu(x) }
            >
        }""")
    after = rewritten(program, eliminate_dead, 1)
    assert counts(after) == {"Neg": 1, "If": 1}
