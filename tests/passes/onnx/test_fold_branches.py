"""An If whose condition is known becomes its branch."""

from __future__ import annotations

import pytest
from passes.programs import counts, parsed, rewritten

from edgesam_deploy.passes.onnx import fold_branches

TEXT = """part (float[2] x, bool[1] f) => (float[2] y, float[2] z)
    <bool[1] yes = {1}, bool[1] no = {0}, float[2] w = {3, 4}> {
    a = Exp(x)
    p, q = If (%s) <
        then_branch = t () => (float[2] b, float[2] c) <float[2] w2 = {1, 2}> { b = Mul(a, w2) c = Add(b, w) },
        else_branch = e () => (float[2] b, float[2] c) { b = Neg(a) c = Identity(b) }
    >
    y = Mul(p, q)
    z = Identity(q)
}"""


@pytest.mark.parametrize(
    ("condition", "left"),
    [("yes", {"Exp": 1, "Mul": 2, "Add": 1, "Identity": 3}), ("no", {"Exp": 1, "Neg": 1, "Identity": 4, "Mul": 1})],
)
def test_the_branch_that_is_taken(condition: str, left: dict[str, int]) -> None:
    after = rewritten(parsed(TEXT % condition), fold_branches, 1)
    assert counts(after) == left
    inside = [v for node in after.onnx.graph for v in node.outputs if v.is_graph_output()]
    assert [v.name for v in inside] == ["y", "z"], "the branch's own outputs are none any more"
    assert not {"yes", "no"} & set(after.onnx.graph.initializers), "nobody reads the condition any more"


def test_a_condition_of_the_input_stays() -> None:
    rewritten(parsed(TEXT % "f"), fold_branches, 0)


def test_one_that_is_a_graph_output() -> None:
    text = """part (float[2] x) => (float[2] y) <bool yes = {1}> {
        y = If (yes) <then_branch = t () => (float[2] b) { b = Neg(x) },
        else_branch = e () => (float[2] c) { c = Exp(x) }> }"""
    after = rewritten(parsed(text), fold_branches, 1)
    assert counts(after) == {"Neg": 1, "Identity": 1}
    assert [v.name for v in after.onnx.graph.outputs] == ["y"]


def test_branches_that_use_the_same_names() -> None:
    """Two graphs side by side may; in one graph the second value needs another name."""
    branch = "%s_branch = %s () => (float[2] b) <float[2] k = {%s}> { b = %s(%s, k) }"
    first = f"{branch % ('then', 't', '1, 2', 'Add', 'x')}, {branch % ('else', 'e', '3, 4', 'Sub', 'x')}"
    second = f"{branch % ('then', 't', '5, 6', 'Mul', 'p')}, {branch % ('else', 'e', '7, 8', 'Div', 'p')}"
    text = f"""part (float[2] x) => (float[2] y) <bool yes = {{1}}, bool no = {{0}}> {{
        p = If (no) <{first}> q = If (yes) <{second}> y = Neg(q) }}"""
    after = rewritten(parsed(text), fold_branches, 2)
    assert counts(after) == {"Sub": 1, "Mul": 1, "Neg": 1, "Identity": 2}
    assert len(after.onnx.graph.initializers) == 2
    names = [value.name for node in after.onnx.graph for value in node.outputs]
    assert len(set(names)) == 5
