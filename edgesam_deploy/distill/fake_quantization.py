"""Quantisation-aware training of an image encoder: convolutions that see what int8 leaves of weights and inputs.

    weights   symmetric, -127..127, one scale per output channel: folding batch norm scales whole channels, so that
              quantising before the fold is quantising after it
    inputs    affine, 0..255, one scale per tensor, over a running range of what was seen

Gradients pass straight through where a value lies in range (arXiv 1712.05877). Names and weights stay those of a plain
encoder, so that the checkpoint builds like any other; only the ranges are extra, and ``deployable`` leaves them out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOMENTUM = 0.05  # of the running range
LEVELS = 255


def quantize_convolutions(encoder: nn.Module) -> int:
    """Make every convolution of ``encoder`` one that quantises; returns how many. Only while training."""
    count = 0
    for module in encoder.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = QuantizedConv2d
            module.register_buffer("input_range", torch.zeros(2))
            count += 1
    return count


class QuantizedConv2d(nn.Conv2d):
    """A convolution of 8-bit weights and inputs, computed in floating point.

    ``input_range``: the running minimum and maximum; (0, 0) until something was seen.
    """

    input_range: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self._look(x.detach())
        low, high = self.input_range
        output: Tensor = self._conv_forward(fake_affine(x, low, high), fake_symmetric(self.weight), self.bias)
        return output

    def _look(self, x: Tensor) -> None:
        seen = torch.stack([x.amin().clamp_max(0), x.amax().clamp_min(0)]).to(self.input_range)
        first = bool((self.input_range == 0).all())
        self.input_range.copy_(seen if first else self.input_range.lerp(seen, MOMENTUM))


class _Rounded(torch.autograd.Function):
    """The nearest integer, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def fake_symmetric(weight: Tensor) -> Tensor:
    """(O, ...) on the grid of 255 values around 0 that reaches to each output channel's largest magnitude."""
    scale = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-12) / (LEVELS // 2)
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    return _Rounded.apply(weight / scale) * scale  # type: ignore[no-any-return,no-untyped-call]


def fake_affine(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``x`` on 256 values from ``low`` to ``high``, of which one is 0; as it is where the range is empty."""
    scale = (high - low) / LEVELS
    if not bool(scale > 0):
        return x
    zero = (-low / scale).round()
    steps: Tensor = _Rounded.apply(x / scale) + zero  # type: ignore[no-untyped-call]
    return (F.hardtanh(steps, 0.0, float(LEVELS)) - zero) * scale
