"""A number that a layer's result is multiplied by goes into its weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.model.transformer import Attention
from edgesam_deploy.passes.aten import fold_scale

SCALED: dict[str, Callable[[Calls, Tensor], Tensor]] = {
    "directly": lambda s, x: s.layer(x) * 0.25,
    "heads": lambda s, x: s.layer(x).unflatten(-1, (2, 3)).transpose(1, 2) * 0.5,
    "twice": lambda s, x: (s.layer(x).unsqueeze(0) * 0.5).flatten(0, 1) * 3,
}
LEFT: dict[str, Callable[[Calls, Tensor], Tensor]] = {
    "read elsewhere": lambda s, x: (y := s.layer(x)) * 0.25 + y,
    "not linear": lambda s, x: s.layer(x).relu() * 0.25,
    "by a tensor": lambda s, x: s.layer(x) * x.mean(),
    "an input": lambda s, x: x * 0.25 + s.layer(x),
    "a view read elsewhere": lambda s, x: (y := s.layer(x).flatten(1)) * 0.25 + y.sin(),
    "below a view read elsewhere": lambda s, x: (y := s.layer(x)).flatten(1) * 0.25 + y.sum(),
    "computed weight": lambda s, x: F.linear(x, s.layer.weight * x.mean(), s.layer.bias) * 0.25,
    "computed bias": lambda s, x: F.linear(x, s.layer.weight, x.mean((0, 1))) * 0.25,
}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("bias", [True, False])
def test_into_a_linear_layer(kind: str, bias: bool) -> None:
    program = traced(Calls(SCALED[kind], layer=nn.Linear(4, 6, bias=bias)), (2, 5, 4))
    after = rewritten(program, fold_scale, 2 if kind == "twice" else 1)
    assert "mul" not in counts(after)


def test_into_a_convolution() -> None:
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    after = rewritten(traced(Calls(lambda s, x: s.layer(x) * -2.0, layer=layer), (1, 4, 8, 8)), fold_scale, 1)
    assert "mul" not in counts(after)


def test_a_weight_that_two_layers_share() -> None:
    layer = nn.Linear(4, 4)
    program = traced(Calls(lambda s, x: s.layer(x) * 0.5 + s.layer(x + 1), layer=layer), (2, 4))
    rewritten(program, fold_scale, 1)


@pytest.mark.parametrize("kind", LEFT)
def test_what_stays(kind: str) -> None:
    rewritten(traced(Calls(LEFT[kind], layer=nn.Linear(4, 4)), (2, 5, 4)), fold_scale, 0)


def test_the_attention_of_sam() -> None:
    torch.manual_seed(0)
    program = traced(Calls(lambda s, x: s.attention(x, x, x), attention=Attention(8, 2, 2)), (1, 6, 8))
    assert "mul" not in counts(rewritten(program, fold_scale, 1))


def test_a_transposed_view_of_a_layer_by_one_number() -> None:
    """Also through ``aten.mul.Scalar``, and without a bias that is written out."""
    layer = nn.Linear(4, 6, bias=False)
    scaled = Calls(lambda s, x: torch.ops.aten.mul.Scalar(F.linear(x, s.layer.weight, None).mT, 2), layer=layer)
    rewritten(traced(scaled, (2, 5, 4)), fold_scale, 0)  # mT is none of the views
    scaled = Calls(lambda s, x: torch.ops.aten.mul.Scalar(s.layer(x).transpose(1, 2), 2), layer=layer)
    assert counts(rewritten(traced(scaled, (2, 5, 4)), fold_scale, 1)) == {"linear": 1, "transpose": 1}


def test_a_convolution_without_a_bias_keeps_its_stride() -> None:
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
    after = rewritten(traced(Calls(lambda s, x: s.layer(x) * 3, layer=layer), (1, 4, 8, 8)), fold_scale, 1)
    assert counts(after) == {"conv2d": 1}
