"""Picking one entry becomes a slice and a squeeze."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, rewritten, traced

from edgesam_deploy.passes.aten import gather_to_slice


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), where=st.tuples(st.integers(0, 99), st.integers(0, 99))
)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_static_entry(shape: list[int], where: tuple[int, int]) -> None:
    dim = where[0] % (2 * len(shape)) - len(shape)
    index = where[1] % (2 * shape[dim]) - shape[dim]
    before = traced(Calls(lambda _, x: x.select(dim, index)), tuple(shape))
    assert counts(rewritten(before, gather_to_slice, 1)) == {"slice": 1, "squeeze": 1}


def test_every_token_of_a_dynamic_batch() -> None:
    before = traced(Calls(lambda _, x: torch.stack([x[:, 0], x[:, 3], x[:, -1]])), ("batch", 5, 3))
    after = rewritten(before, gather_to_slice, 3)
    assert "select" not in counts(after)


def test_the_first_of_a_dynamic_dimension() -> None:
    before = traced(Calls(lambda _, x: x[:, 0]), (2, "points", 3))
    assert "select" not in counts(rewritten(before, gather_to_slice, 1))


def test_only_the_picked_axis_is_squeezed() -> None:
    before = traced(Calls(lambda _, x: x[:, 2]), (1, 4, 1, 3))
    after = rewritten(before, gather_to_slice, 1)
    output = after.aten.graph_signature.user_outputs[0]
    value = next(n for n in after.aten.graph.nodes if n.name == output)
    assert tuple(value.meta["val"].shape) == (1, 1, 3)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda _, x: x[:, -1], [(2, "points", 3)]),  # the last of an unknown number
        (lambda _, x, y: x[:, y.shape[0] - 1], [(2, "points", 3), ("points", 2)]),  # an index only known at run time
        (lambda _, x: x[:, [0, 2]], [(2, 4, 3)]),
        (lambda _, x: x[:, 1:2], [(2, 4, 3)]),
    ],
    ids=["negative-dynamic", "symbolic", "list", "slice"],
)
def test_leaves_alone(function: object, shapes: list[tuple[int | str, ...]]) -> None:
    rewritten(traced(Calls(function), *shapes), gather_to_slice, 0)  # type: ignore[arg-type]
