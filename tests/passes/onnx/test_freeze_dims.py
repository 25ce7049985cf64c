"""Dynamic dimensions get sizes."""

from __future__ import annotations

from dataclasses import replace

from passes.programs import parsed, rewritten

from edgesam_deploy.passes.onnx import freeze_dims
from edgesam_deploy.passes.program import Program


def program() -> Program:
    found = parsed(
        """part (float[n,m] x, bool f) => (float[n,m] y) {
            a = Neg(x)
            y = If (f) <then_branch = t () => (float[n,m] b) { b = Exp(a) },
                else_branch = e () => (float[n,m] c) { c = Abs(a) }> }"""
    )
    found.inputs = tuple(replace(s, shape=tuple(3 if d == "n" else d for d in s.shape)) for s in found.inputs)
    return found


def test_everywhere() -> None:
    after = rewritten(program(), freeze_dims({"n": 3}), 5)  # x, a, y, b, c
    values = [v for g in after.onnx.graphs() for v in [*g.inputs, *(v for n in g for v in n.outputs)]]
    assert {str(v.shape) for v in values} == {"[3,m]", "[]"}
    assert freeze_dims({"n": 3}).name == "freeze_dims"  # what a report calls it


def test_values_of_unknown_shape() -> None:
    found = parsed("part (float[n] x) => (float[n] y) { a = Neg(x) y = Exp(a) }", infer=False)
    assert freeze_dims({"n": 3})(found) == 2  # x and y


def test_names_that_are_not_there() -> None:
    rewritten(program(), freeze_dims({"k": 3}), 0)
    rewritten(program(), freeze_dims({}), 0)
