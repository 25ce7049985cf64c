"""Softmax over an axis that is not the last, as arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, rewritten, traced

from edgesam_deploy.passes.aten import decompose_softmax


def test_before_and_after() -> None:
    after = rewritten(traced(Calls(lambda _, x: x.softmax(1)), (2, 3, 4)), decompose_softmax, 1)
    assert counts(after) == {"amax": 1, "sub": 1, "exp": 1, "sum": 1, "div": 1}


@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=5), data=st.data(), offset=st.sampled_from([0, 100, -1e4])
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_any_axis(shape: list[int], data: st.DataObject, offset: float) -> None:
    """Large scores too: the exponential of 100 times these is not a number of fp32."""
    axis = data.draw(st.integers(-len(shape), len(shape) - 2))
    last = axis == -1
    program = traced(Calls(lambda _, x: (20 * x + offset).softmax(axis)), tuple(shape))
    rewritten(program, decompose_softmax, int(not last))


@pytest.mark.parametrize("axis", [-1, 2])
def test_the_last_axis_is_left_alone(axis: int) -> None:
    rewritten(traced(Calls(lambda _, x: x.softmax(axis)), (2, 3, 4)), decompose_softmax, 0)


def test_with_a_type_of_its_own() -> None:
    rewritten(traced(Calls(lambda _, x: x.softmax(1, dtype=torch.float64)), (2, 3, 4)), decompose_softmax, 0)


def test_dynamic_axes() -> None:
    rewritten(traced(Calls(lambda _, x: x.softmax(-2)), ("batch", "points", 4)), decompose_softmax, 1)
