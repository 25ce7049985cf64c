"""Picking evenly spaced places becomes a Slice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import counts, parsed, rewritten

from edgesam_deploy.passes.onnx import legalize_gather
from edgesam_deploy.passes.program import Program


def program(places: str, axis: int = 1, shape: str = "2,5,3", kind: str = "", opset: int = 20) -> Program:
    text = f"""part (float[{shape}] x) => (float[?] y)
        <int64{kind} at = {{{places}}}> {{ g = Gather<axis = {axis}>(x, at) y = Neg(g) }}"""
    sizes = np.zeros([int(d) for d in shape.split(",")])
    at = np.array([int(p) for p in places.split(",")]) if kind else int(places)
    output = ",".join(map(str, np.take(sizes, at, axis).shape))
    return parsed(text.replace("float[?]", f"float[{output}]" if output else "float"), opset)


@pytest.mark.parametrize(("place", "axis"), [(0, 0), (1, 0), (3, 1), (-1, 1), (-5, 1), (2, -1), (-3, 2)])
def test_one_place(place: int, axis: int) -> None:
    assert counts(rewritten(program(str(place), axis), legalize_gather, 1)) == {"Slice": 1, "Reshape": 1, "Neg": 1}


@pytest.mark.parametrize("places", ["0", "1,2", "0,2,4", "-2,-1", "0,1,2,3,4"])
def test_several(places: str) -> None:
    kind = f"[{places.count(',') + 1}]"
    after = rewritten(program(places, kind=kind), legalize_gather, 1)
    assert counts(after) == {"Slice": 1, "Neg": 1}
    result = next(iter(after.onnx.graph)).outputs[0]
    assert str(result.shape) == f"[2,{places.count(',') + 1},3]", "what later passes read"


@pytest.mark.parametrize("places", ["1,0", "0,0", "0,1,3", "4,2,0", "-1,0"])
def test_uneven_places_stay(places: str) -> None:
    rewritten(program(places, kind=f"[{places.count(',') + 1}]"), legalize_gather, 0)


@pytest.mark.parametrize(("opset", "sites"), [(9, 0), (10, 1)])
def test_since_a_slice_takes_its_bounds_as_inputs(opset: int, sites: int) -> None:
    rewritten(program("2", opset=opset), legalize_gather, sites)


def test_a_graph_output_keeps_its_name() -> None:
    after = rewritten(
        parsed("part (float[3,2] x) => (float[2] y) <int64 at = {1}> { y = Gather(x, at) }"), legalize_gather, 1
    )
    assert [v.name for v in after.onnx.graph.outputs] == ["y"]


@pytest.mark.parametrize(
    "text",
    [
        "part (float[3,2] x, int64 i) => (float[2] y) { a = Abs(i) m = Sub(i, i) y = Gather(x, m) }",
        "part (float[n,2] x) => (float[2] y) <int64 at = {0}> { y = Gather(x, at) }",
        "part (float[3,2] x) => (float[0,2] y) <int64[0] at = {}> { y = Gather(x, at) }",
        "part (float[3,2] x) => (float[1,2,2] y) <int64[1,2] at = {0, 1}> { y = Gather(x, at) }",
    ],
)
def test_left_alone(text: str) -> None:
    rewritten(parsed(text), legalize_gather, 0)


@given(
    size=st.integers(1, 6), start=st.integers(0, 5), step=st.integers(1, 3), count=st.integers(1, 4), back=st.booleans()
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_even_places(size: int, start: int, step: int, count: int, back: bool) -> None:
    places = [p for p in range(start, start + step * count, step) if p < size]
    if not places:
        return
    written = ",".join(str(p - size if back else p) for p in places)
    rewritten(program(written, 1, f"2,{size},3", f"[{len(places)}]"), legalize_gather, 1)
