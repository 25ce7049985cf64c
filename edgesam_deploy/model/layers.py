"""The small modules that every network of the family is made of."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gelu = Literal["erf", "tanh"]
Norm = Literal["layer", "dyt"]


def gelu(kind: Gelu) -> nn.GELU:
    """GELU by its exact form (``erf``) or by the tanh approximation (at most 4.8e-4 away from it)."""
    return nn.GELU(approximate="tanh" if kind == "tanh" else "none")


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of (B, C, H, W): biased variance, ``eps`` inside the root.

    Written as the last-axis operator between two permutations, because that is what it is: tracers then
    keep one norm operator instead of a chain of means, powers and roots that each compiler must guess back.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class DynamicTanh(nn.Module):
    """tanh(alpha x) * weight + bias, the norm's stand-in of arXiv 2503.10622; ``alpha`` is one number for all.

    ``channels_last``: x is (..., C), else (B, C, H, W).
    """

    def __init__(self, channels: int, *, channels_last: bool) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last:
            return torch.tanh(self.alpha * x) * self.weight + self.bias
        return torch.tanh(self.alpha * x) * self.weight[:, None, None] + self.bias[:, None, None]


def norm2d(kind: Norm, channels: int) -> nn.Module:
    """The norm of a map (B, C, H, W)."""
    return DynamicTanh(channels, channels_last=False) if kind == "dyt" else LayerNorm2d(channels)


def norm1d(kind: Norm, channels: int) -> nn.Module:
    """The norm of tokens (..., C)."""
    return DynamicTanh(channels, channels_last=True) if kind == "dyt" else nn.LayerNorm(channels)


class ConvNorm(nn.Sequential):
    """Convolution without bias (``c``) and batch norm (``bn``), the pair that RepViT is built of."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(outputs))


class Mlp(nn.Module):
    """``depth`` linear layers with ReLU between them (SAM's hypernetworks and its IoU head)."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    """Channel gate: global mean, 1x1 to a quarter of the channels, ReLU, 1x1 back, sigmoid, multiply.

    The reduced width is rounded to the nearest multiple of 8 (at least 8): 48 channels give 16, not 12.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(8, int(channels / 4 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(gate))))
