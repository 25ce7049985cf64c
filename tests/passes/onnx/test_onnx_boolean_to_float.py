"""Label codes are compared without booleans."""

from __future__ import annotations

from dataclasses import replace

import pytest
from passes.programs import counts, parsed, rewritten

from edgesam_deploy.passes.onnx import boolean_to_float
from edgesam_deploy.passes.program import Program

EQUAL = "c = Equal(e, code) f = Cast<to = 1>(c) y = Neg(f)"
UNEQUAL = "c = Equal(e, code) n = Not(c) f = Cast<to = 1>(n) y = Neg(f)"


def labelled(body: str, role: str = "labels", code: str = "float code = {-1.0}") -> Program:
    """labels (1, 5) -> 1.0 or 0.0 for each, after an axis more."""
    text = f"part (float[1,5] x) => (float[1,5,1] y) <int64[1] a = {{2}}, {code}> {{ e = Unsqueeze(x, a) {body} }}"
    program = parsed(text)
    return replace(program, inputs=(replace(program.inputs[0], role=role),))


@pytest.mark.parametrize("code", [-10, -1, 0, 3])
@pytest.mark.parametrize(("body", "subs"), [(EQUAL, 2), (UNEQUAL, 3)])
def test_the_same_numbers(body: str, subs: int, code: int) -> None:
    after = rewritten(labelled(body, code=f"float code = {{{code}.0}}"), boolean_to_float, 1)
    assert counts(after) == {"Unsqueeze": 1, "Sub": subs, "Mul": 1, "Relu": 1, "Neg": 1}


def test_both_at_once() -> None:
    body = "c = Equal(code, e) n = Not(c) f = Cast<to = 1>(c) g = Cast<to = 1>(n) h = Sub(f, g) y = Neg(h)"
    after = rewritten(labelled(body), boolean_to_float, 1)
    assert {"Equal", "Not", "Cast"}.isdisjoint(counts(after))


@pytest.mark.parametrize(
    "program",
    [
        labelled(EQUAL, role="coords"),
        labelled(EQUAL, code="float code = {0.5}"),
        labelled("c = Equal(e, code) i = Cast<to = 7>(c) y = Cast<to = 1>(i)"),
        labelled("c = Equal(e, code) y = Where(c, e, code)"),
        labelled("c = Equal(e, code) y = Cast<to = 1>(c)"),
        labelled("r = Relu(e) c = Equal(r, code) y = Cast<to = 1>(c)"),
    ],
    ids=["coordinates", "half a code", "read as an integer", "read as a boolean", "an output", "computed"],
)
def test_left_alone(program: Program) -> None:
    rewritten(program, boolean_to_float, 0)
