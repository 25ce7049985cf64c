"""A 1x1 convolution disappears into the convolutions before it, only where nothing else lies between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch.nn.functional as F
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.passes.aten import absorb_pointwise_conv


def program(function: Callable[..., Tensor | tuple[Tensor, ...]], outputs: int = 1, **children: nn.Module):  # type: ignore[no-untyped-def]
    return traced(randomise(Calls(function, **children)), (1, 3, 6, 4), (1, 5, 3, 2), outputs=outputs)


def twice(x: Tensor, mode: str = "bicubic") -> Tensor:
    return F.interpolate(x, scale_factor=2, mode=mode, align_corners=False)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("bias", [False, True])
def test_edgesams_neck(mode: str, bias: bool) -> None:
    before = program(
        lambda s, x, y: s.neck(s.a(x) + twice(s.b(y), mode)),
        a=nn.Conv2d(3, 4, 1, bias=bias), b=nn.Conv2d(5, 4, 1, bias=bias), neck=nn.Conv2d(4, 4, 1, bias=not bias),
    )  # fmt: skip
    after = rewritten(before, absorb_pointwise_conv, 1)
    assert counts(after)["conv2d"] == 2
    shapes = {name: tuple(value.shape) for name, value in after.aten.state_dict.items()}
    assert shapes["a.projected.weight"] == (4, 3, 1, 1)
    assert "b.projected.bias" in shapes if bias else "b.projected.bias" not in shapes  # the neck's goes to one of them
    assert "neck.weight" not in shapes


def test_a_chain_with_strides_and_padding() -> None:
    before = program(
        lambda s, x, y: s.second(s.first(x)) + s.wide(y).mean(),
        first=nn.Conv2d(3, 4, 3, stride=2, padding=1), second=nn.Conv2d(4, 4, 1), wide=nn.Conv2d(5, 5, 1),
    )  # fmt: skip
    assert counts(rewritten(before, absorb_pointwise_conv, 1))["conv2d"] == 2


def test_three_summands() -> None:
    before = program(
        lambda s, x, y: s.neck(s.a(x) + s.b(x) + twice(s.c(y))),
        a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(3, 4, 1), c=nn.Conv2d(5, 4, 1), neck=nn.Conv2d(4, 4, 1),
    )  # fmt: skip
    assert counts(rewritten(before, absorb_pointwise_conv, 1))["conv2d"] == 3


def conv(kernel: int = 1, **options: int) -> nn.Conv2d:
    return nn.Conv2d(4, 4, kernel, padding=kernel // 2, **options)


REFUSED: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "something bends between": lambda s, x, y: s.point(F.relu(s.a(x))),
    "a larger kernel": lambda s, x, y: s.square(s.a(x)),
    "groups behind": lambda s, x, y: s.grouped(s.a(x)),
    "groups before": lambda s, x, y: s.point(s.grouped(s.a(x))),
    "other channels": lambda s, x, y: s.wider(s.a(x)),
    "a summand of another kind": lambda s, x, y: s.point(s.a(x) + x.mean()),
    "a summand spread over the map": lambda s, x, y: s.point(s.a(x) + s.a(x).mean(3, keepdim=True)),
    "a weighted sum": lambda s, x, y: s.point(s.a(x).add(s.b(x), alpha=2)),
    "strides": lambda s, x, y: s.strided(s.a(x)),
    "two readers": lambda s, x, y: (lambda between: s.point(between) + between)(s.a(x)),
    "nearest pixels of a computed map": lambda s, x, y: s.point(F.interpolate(F.relu(s.a(x)), scale_factor=2)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_left_alone(name: str) -> None:
    before = program(
        lambda s, x, y: REFUSED[name](s, x, y) + y.mean(),  # type: ignore[operator]
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), point=conv(), square=conv(3), grouped=conv(groups=2),
        wider=nn.Conv2d(4, 6, 1), strided=conv(stride=2),
    )  # fmt: skip
    rewritten(before, absorb_pointwise_conv, 0)
