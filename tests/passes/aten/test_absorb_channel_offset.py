"""A number per channel moves from the image's pixels into constants that are added anyway."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.passes.aten import absorb_channel_offset
from edgesam_deploy.passes.program import Program

IMAGE = (1, 4, 3, 5)


def tokens(s: Calls, x: Tensor) -> Tensor:
    return (x + s.offset).flatten(2).transpose(1, 2)


def beside(s: Calls, x: Tensor) -> Tensor:
    y = tokens(s, x)
    return y + s.other(s.layer(x.flatten(2).transpose(1, 2)))


ABSORBED: dict[str, Callable[[Calls, Tensor], Tensor]] = {
    "positions": lambda s, x: tokens(s, x) + s.places,
    "positions first": lambda s, x: s.places + tokens(s, x),
    "a layer": lambda s, x: s.layer(tokens(s, x)),
    "the layer beside it": beside,
    "all three": lambda s, x: (y := tokens(s, x)) + s.other(s.layer(y) * (y + s.places).mean()),
    "the offset first": lambda s, x: (s.offset + x).flatten(2).transpose(1, 2) + s.places,
    "named arguments": lambda s, x: (x + s.offset).flatten(start_dim=2).transpose(1, 2) + s.places,
}
LEFT: dict[str, Callable[[Calls, Tensor], Tensor]] = {
    "another reader": lambda s, x: s.layer(y := tokens(s, x)) * y.mean(),
    "read as an image too": lambda s, x: s.layer((y := x + s.offset).flatten(2).transpose(1, 2)) * y.mean(),
    "flattened for others": lambda s, x: s.layer((y := (x + s.offset).flatten(2)).transpose(1, 2)) * y.mean(),
    "no tokens": lambda s, x: (x + s.offset).flatten(2).transpose(0, 1).sum() + s.places,
    "other axes": lambda s, x: (x + s.offset).flatten(1).mean() + s.places,
    "a number per pixel": lambda s, x: (x + s.pixels).flatten(2).transpose(1, 2) + s.places,
    "scaled": lambda s, x: torch.add(x, s.offset, alpha=2).flatten(2).transpose(1, 2) + s.places,
    "scaled positions": lambda s, x: torch.add(tokens(s, x), s.places, alpha=2),
    "a layer that others read": lambda s, x: tokens(s, x) + (y := s.other(s.layer(x.flatten(2).mT))) * y.mean() + y,
    "computed weights": lambda s, x: nn.functional.linear(tokens(s, x), x[0, :, 0, :4]),
    "a broadcast layer": lambda s, x: tokens(s, x) + s.other(s.layer(x.flatten(2).mT)[:, :1]),
    "no image": lambda s, x: (x[0] + s.offset[0]).flatten(1).transpose(0, 1) + s.places[0],
}


def program(
    function: Callable[[Calls, Tensor], Tensor], bias: bool = True, shape: tuple[int | str, ...] = IMAGE
) -> Program:
    torch.manual_seed(0)
    return traced(
        Calls(
            function, offset=torch.randn(1, 4, 1, 1), places=torch.randn(1, 15, 4), pixels=torch.randn(3, 5),
            layer=nn.Linear(4, 6, bias=bias), other=nn.Linear(6, 4, bias=bias),
        ),
        shape,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ABSORBED)
@pytest.mark.parametrize("bias", [True, False])
def test_into_constants(kind: str, bias: bool) -> None:
    before = program(ABSORBED[kind], bias)
    after = rewritten(before, absorb_channel_offset, 1)
    assert counts(after).get("add", 0) == counts(before)["add"] - 1


@pytest.mark.parametrize("kind", LEFT)
def test_what_stays(kind: str) -> None:
    rewritten(program(LEFT[kind]), absorb_channel_offset, 0)


def test_a_weight_that_another_layer_shares() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        return s.layer(tokens(s, x)) - s.layer(x.flatten(2).transpose(1, 2) * 2)

    rewritten(program(function), absorb_channel_offset, 1)


def test_a_dynamic_batch() -> None:
    rewritten(program(ABSORBED["positions"], shape=("b", 4, 3, 5)), absorb_channel_offset, 1)
