"""Cross-attention with the pixels on the last axis."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.aten.test_absorb_token_projections import HEADS, MANY, C, attention, program, to_image, to_tokens
from passes.programs import counts, rewritten

from edgesam_deploy.passes.aten import canonicalize_cross_attention

aten = torch.ops.aten


def test_tokens_to_image() -> None:
    after = rewritten(program(to_image), canonicalize_cross_attention, 1)
    found = counts(after)
    assert (found["linear"], found["matmul"]) == (2, 4)
    assert "mul" not in found
    for product in (n for n in after.aten.graph.nodes if n.target == aten.matmul.default):
        assert product.meta["val"].shape[-1] == MANY or product.meta["val"].shape[-2] == 5


def test_image_to_tokens() -> None:
    after = rewritten(program(to_tokens), canonicalize_cross_attention, 1)
    (softmax,) = (n for n in after.aten.graph.nodes if n.target == aten.softmax.int)
    assert tuple(softmax.meta["val"].shape) == (1, HEADS, 5, MANY)
    assert softmax.args[1] == 2
    rows = [tuple(n.meta["val"].shape) for n in after.aten.graph.nodes if n.target == aten.linear.default]
    assert rows == [(1, 5, 4), (1, 5, 4), (1, MANY, C)]


@given(
    function=st.sampled_from([to_image, to_tokens]),
    few=st.integers(1, 10),
    heads=st.sampled_from([1, 2, 4]),
    prompts=st.integers(1, 3),
    shared=st.booleans(),
    biased=st.booleans(),
    without=st.sets(st.sampled_from(["q_proj", "k_proj", "v_proj", "out_proj"])),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_any_site(
    function: Any, few: int, heads: int, prompts: int, shared: bool, biased: bool, without: set[str]
) -> None:
    net = attention(heads=heads, without=tuple(without))
    keys = MANY if function is to_image else few
    more = [(prompts, 1, 1, keys)] if biased else []
    many = (1 if shared else prompts, MANY, C)
    rewritten(program(function, (prompts, few, C), many, *more, net=net), canonicalize_cross_attention, 1)


@pytest.mark.parametrize("function", [to_image, to_tokens])
@pytest.mark.parametrize(
    ("few", "many"),
    [((1, "points", C), (1, MANY, C)), (("batch", 5, C), (1, MANY, C)), (("batch", "points", C), ("batch", MANY, C))],
)
def test_dynamic_counts(function: Any, few: Any, many: Any) -> None:
    rewritten(program(function, few, many), canonicalize_cross_attention, 1)


@pytest.mark.parametrize("few", [11, 80])
def test_not_lopsided(few: int) -> None:
    rewritten(program(to_image, (1, few, C)), canonicalize_cross_attention, 0)
    rewritten(program(to_tokens, (1, few, C)), canonicalize_cross_attention, 0)
