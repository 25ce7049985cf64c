"""OneHot as comparisons."""

from __future__ import annotations

import numpy as np
import pytest
from passes.programs import counts, parsed, rewritten

from edgesam_deploy.passes.execute import run_program
from edgesam_deploy.passes.onnx import legalize_one_hot
from edgesam_deploy.passes.program import Program


def program(axis: int = -1, depth: str = "4", values: str = "0, 1", kind: str = "int64", size: str = "6") -> Program:
    shape = {0: "4,2,6", 1: "2,4,6", -2: "2,4,6"}.get(axis, "2,6,4")
    return parsed(
        f"""part ({kind}[2,6] x) => (float[{shape}] y) <int64 depth = {{{depth}}}, float[2] values = {{{values}}}> {{
            y = OneHot<axis = {axis}>(x, depth, values) }}"""
    )


@pytest.mark.parametrize("axis", [-1, 0, 1, 2, -2])
@pytest.mark.parametrize(
    ("values", "more"), [("0, 1", {}), ("2, -3", {"Mul": 1, "Add": 1}), ("0, 5", {"Mul": 1, "Add": 1})]
)
def test_every_place(axis: int, values: str, more: dict[str, int]) -> None:
    """Places, places from the end, and those outside, which are off."""
    before = program(axis, values=values)
    after = rewritten(before, legalize_one_hot, 1)
    assert counts(after) == {"Cast": 2, "Reshape": 1, "Equal": 2, "Or": 1, **more}
    inputs = {"x": np.arange(-6, 6).reshape(2, 6)}
    np.testing.assert_array_equal(run_program(before, inputs)["y"], run_program(after, inputs)["y"])


def test_computed_depths_and_unknown_shapes_stay() -> None:
    text = """part (int64[2] x, int64 d) => (float[2,k] y)
        <float[2] v = {0, 1}> { e = Abs(d) f = Add(e, e) y = OneHot(x, f, v) }"""
    assert legalize_one_hot(parsed(text)) == 0
    text = "part (int64[n] x) => (float[n,3] y) <float[2] v = {0, 1}, int64 d = {3}> { y = OneHot(x, d, v) }"
    rewritten(parsed(text), legalize_one_hot, 0)


def test_places_that_are_no_integers_stay() -> None:
    """ONNX cuts 1.5 down to 1, a comparison would not."""
    assert legalize_one_hot(program(kind="float")) == 0


@pytest.mark.parametrize(("depth", "sites"), [(4096, 1), (4097, 0)])
def test_large_depths_stay(depth: int, sites: int) -> None:
    text = f"""part (int64[2] x) => (float[2,{depth}] y)
        <float[2] v = {{0, 1}}, int64 d = {{{depth}}}> {{ y = OneHot(x, d, v) }}"""
    rewritten(parsed(text), legalize_one_hot, sites)
