"""Projections of the many tokens of a cross-attention folded onto the few."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.model.transformer import Attention
from edgesam_deploy.passes.aten import absorb_token_projections, eliminate_identity
from edgesam_deploy.passes.aten.absorb_token_projections import absorbing
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.program import Program

C, HEADS, MANY = 8, 2, 80  # inner width 4, so 2 per head
always = absorbing(element=1e9)


def attention(dim: int = C, heads: int = HEADS, *, seed: int = 0, without: tuple[str, ...] = ()) -> Attention:
    """With weights of a size that keeps softmax from picking a single key; ``without`` the biases of some layers."""
    made = randomise(Attention(dim, heads, 2), seed)
    assert isinstance(made, Attention)
    with torch.no_grad():
        for name, value in made.named_parameters():
            value.mul_(0.4 if name.endswith("weight") else 1)
    for layer in without:
        getattr(made, layer).bias = None
    return made


def to_image(s: Calls, x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """Few tokens x ask many y; the keys are not what the values are."""
    return s.net(x, y + 0.3, y, bias)  # type: ignore[operator, no-any-return]


def to_tokens(s: Calls, x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """Many y ask few tokens x."""
    return s.net(y, x, x - 0.2, bias)  # type: ignore[operator, no-any-return]


def program(
    function: Any, few: Any = (1, 5, C), many: Any = (1, MANY, C), *more: Any, net: nn.Module | None = None
) -> Program:
    made = traced(Calls(function, net=net or attention(few[-1])), few, many, *more)
    return Engine("off").run(made, (eliminate_identity,))


def test_tokens_to_image() -> None:
    after = rewritten(program(to_image), absorb_token_projections, 1)
    linear = [n for n in after.aten.graph.nodes if n.target == torch.ops.aten.linear.default]
    assert [tuple(n.meta["val"].shape) for n in linear] == [(1, 5, 4), (1, 5, C)], "the image is not projected"
    assert counts(after)["matmul"] == 4
    assert "mul" not in counts(after), "the scale is in the weights"


def test_image_to_tokens() -> None:
    after = rewritten(program(to_tokens), absorb_token_projections, 1)
    linear = [n for n in after.aten.graph.nodes if n.target == torch.ops.aten.linear.default]
    assert [tuple(n.meta["val"].shape) for n in linear] == [(1, 5, 4), (1, 5, 4)], "of the tokens as keys and values"
    (softmax,) = (n for n in after.aten.graph.nodes if n.target == torch.ops.aten.softmax.int)
    assert tuple(softmax.meta["val"].shape) == (1, HEADS, 5, MANY), "pixels last"
    assert max(len(n.meta["val"].shape) for n in after.aten.graph.nodes if "val" in n.meta) == 4


@given(
    function=st.sampled_from([to_image, to_tokens]),
    few=st.integers(1, 9),
    heads=st.sampled_from([1, 2, 4]),
    prompts=st.integers(1, 3),
    shared=st.booleans(),
    biased=st.booleans(),
    without=st.sets(st.sampled_from(["q_proj", "k_proj", "v_proj", "out_proj"])),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_site(
    function: Any, few: int, heads: int, prompts: int, shared: bool, biased: bool, without: set[str], seed: int
) -> None:
    """Batches that broadcast, biases that are not there, scores with a bias per key."""
    net = attention(heads=heads, seed=seed, without=tuple(without))
    keys = MANY if function is to_image else few
    more = [(prompts, 1, 1, keys)] if biased else []
    before = program(function, (prompts, few, C), (1 if shared else prompts, MANY, C), *more, net=net)
    rewritten(before, always, 1)


def test_empty_slots_stay_out() -> None:
    """A bias of -1e4 on a token's scores makes the result independent of the token."""

    def masked(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        bias = torch.tensor([0.0, 0.0, -1e4]).view(1, 1, 1, 3)
        return to_tokens(s, x, y, bias)

    after = rewritten(program(masked, (1, 3, C)), absorb_token_projections, 1)
    x, y = torch.randn(1, 3, C), torch.randn(1, MANY, C)
    other = x.clone()
    other[:, 2] = 7
    run = after.aten.module()
    assert torch.equal(run(x=x, y=y), run(x=other, y=y))


@pytest.mark.parametrize("function", [to_image, to_tokens])
@pytest.mark.parametrize(
    ("few", "many", "even"),
    [
        # absorbed per prompt 2 10 8 80 + 10 4 8; projected per image 4 80 (8 + element), and 4 10 80 per prompt
        ((1, 10, C), (1, MANY, C), 23),
        ((2, 10, C), (2, MANY, C), 23),
        ((2, 10, C), (1, MANY, C), 54),  # one projection serves both prompts
        (("batch", 10, C), ("batch", MANY, C), 23),
        ((1, 5, C), (1, MANY, C), 7.5),
    ],
)
def test_where_it_pays(function: Any, few: Any, many: Any, even: float) -> None:
    before = program(function, few, many)
    rewritten(before, absorbing(element=even), 0)
    rewritten(before, absorbing(element=even + 0.01), 1)


def test_the_default_is_even_at_18_tokens_of_sam() -> None:
    net = attention(256, 8)
    for few, sites in ((18, 1), (19, 0)):
        before = program(to_image, (1, few, 256), (1, 4096, 256), net=net)
        engine = Engine("off")
        engine.run(before, (absorb_token_projections,))
        assert engine.steps[0].sites == sites


def test_most_tokens() -> None:
    before = program(to_image, (1, 10, C))
    rewritten(before, absorbing(element=100, max_tokens=9), 0)
    rewritten(before, absorbing(element=100, max_tokens=10), 1)
    rewritten(before, absorbing(element=100, max_tokens=0), 0)


@pytest.mark.parametrize(
    ("few", "many"),
    [
        ((1, "points", C), (1, MANY, C)),
        (("batch", 5, C), (1, MANY, C)),
        ((1, 5, C), ("batch", MANY, C)),
        ((1, 11, C), (1, MANY, C)),  # not few: fewer than 8 keys per query
        ((1, 80, C), (1, MANY, C)),
    ],
)
def test_left_alone(few: Any, many: Any) -> None:
    for function in (to_image, to_tokens):
        rewritten(program(function, few, many), always, 0)
