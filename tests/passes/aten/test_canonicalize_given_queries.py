"""Image tokens whose queries are given ask a few tokens, with the pixels on the last axis."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.aten.test_absorb_token_projections import HEADS, MANY, C, attention, program, to_tokens
from passes.programs import Calls, counts, rewritten
from torch import Tensor

from edgesam_deploy.passes.aten import canonicalize_given_queries

aten = torch.ops.aten
D = 2  # per head


def asks(s: Calls, tokens: Tensor, queries: Tensor, bias: Tensor | None = None) -> Tensor:
    """Queries (1, h, P, d) of an image, made elsewhere, over what the tokens offer."""
    net: Any = s.net
    keys, values = net.split(net.k_proj(tokens)), net.split(net.v_proj(tokens - 0.2))
    scores = queries @ keys.transpose(-2, -1)
    mixed = (scores if bias is None else scores + bias).softmax(-1) @ values
    return net.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def queries(heads: int = HEADS, many: int = MANY) -> tuple[int, ...]:
    return (1, heads, many, D)


def test_pixels_come_last_and_the_output_projection_meets_tokens() -> None:
    after = rewritten(program(asks, (1, 5, C), queries()), canonicalize_given_queries, 1)
    (softmax,) = (n for n in after.aten.graph.nodes if n.target == aten.softmax.int)
    assert (tuple(softmax.meta["val"].shape), softmax.args[1]) == ((1, HEADS, 5, MANY), 2)
    assert counts(after)["linear"] == 2, "of the tokens as keys and values"


def test_more_tokens_are_mixed_before_they_are_projected() -> None:
    """60 rows for each pixel cost more than its projection."""
    after = rewritten(program(asks, (1, 60, C), queries(many=500)), canonicalize_given_queries, 1)
    shapes = [tuple(n.meta["val"].shape) for n in after.aten.graph.nodes if n.target == aten.linear.default]
    assert shapes[-1] == (1, 500, C)


@given(
    few=st.integers(1, 10),
    heads=st.sampled_from([1, 2, 4]),
    prompts=st.integers(1, 3),
    biased=st.booleans(),
    without=st.sets(st.sampled_from(["k_proj", "v_proj", "out_proj"])),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_site(few: int, heads: int, prompts: int, biased: bool, without: set[str]) -> None:
    net = attention(2 * D * heads, heads, without=tuple(without))
    more = [(prompts, 1, 1, few)] if biased else []
    made = program(asks, (prompts, few, 2 * D * heads), queries(heads), *more, net=net)
    rewritten(made, canonicalize_given_queries, 1)


@pytest.mark.parametrize("few", [(1, "points", C), ("batch", 5, C), ("batch", "points", C)])
def test_dynamic_counts(few: Any) -> None:
    rewritten(program(asks, few, queries()), canonicalize_given_queries, 1)


@pytest.mark.parametrize("few", [11, 80, 800])
def test_not_lopsided(few: int) -> None:
    rewritten(program(asks, (1, few, C), queries()), canonicalize_given_queries, 0)


def test_queries_that_are_projected_here_are_for_other_passes() -> None:
    rewritten(program(to_tokens), canonicalize_given_queries, 0)
