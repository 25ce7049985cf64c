"""SAM's image encoder: a plain ViT whose blocks attend in windows, a few of them globally (arXiv 2203.16527).

image (B, 3, S, S) ── 16x16 patches + positions ── blocks, tokens as (B, g, g, C) ── neck ── (B, 256, g, g), g = S/16
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesam_deploy.model.configs import VitConfig
from edgesam_deploy.model.layers import LayerNorm2d, gelu


class PatchEmbed(nn.Module):
    """(B, 3, S, S) -> (B, S/patch, S/patch, C)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


def window_partition(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B n m, window, window, C); right and bottom are padded with zeros, which are attended to."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(-1, rows, window, columns, window, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, window, window, x.shape[-1])


def window_merge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of ``window_partition``: (B n m, window, window, C) -> (B, H, W, C), ``size`` = H, W."""
    window = x.shape[1]
    rows, columns = (-(-side // window) for side in size)
    x = x.reshape(-1, rows, columns, window, window, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, rows * window, columns * window, x.shape[-1])[:, : size[0], : size[1]]


def relative_table(table: Tensor, side: int) -> Tensor:
    """Learned offsets (L, C) -> (side, side, C), entry [query, key]; resampled where L is not 2 side - 1."""
    if table.shape[0] != 2 * side - 1:
        table = F.interpolate(table.t()[None], 2 * side - 1, mode="linear")[0].t()
    positions = torch.arange(side, device=table.device)
    return table[positions[:, None] - positions[None, :] + side - 1]


class VitAttention(nn.Module):
    """Self-attention over a grid of tokens with decomposed relative positions: (B, H, W, C) -> the same.

    The relative terms read the unscaled queries, as the checkpoints were trained. Nothing has more than four axes.
    """

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        tokens = height * width
        q, k, v = (self._project(x.flatten(1, 2), index) for index in range(3))  # (B heads, tokens, c)
        grid = q.reshape(batch * self.heads, height, width, -1)
        rows = grid @ relative_table(self.rel_pos_h, height).transpose(1, 2)  # (B heads, H, W, key row)
        columns = grid.transpose(1, 2) @ relative_table(self.rel_pos_w, width).transpose(1, 2)
        columns = columns.transpose(1, 2)
        bias = rows.flatten(1, 2)[..., None] + columns.flatten(1, 2)[:, :, None, :]
        scores = (q * self.scale) @ k.transpose(1, 2) + bias.flatten(2)
        mixed = (scores.softmax(-1) @ v).reshape(batch, self.heads, tokens, -1).transpose(1, 2)
        return self.proj(mixed.reshape(batch, height, width, channels))  # type: ignore[no-any-return]

    def _project(self, x: Tensor, index: int) -> Tensor:
        """Queries, keys or values from a third of the weights: cutting those, not the result, leaves nothing behind."""
        third = slice(index * x.shape[-1], (index + 1) * x.shape[-1])
        part = F.linear(x, self.qkv.weight[third], self.qkv.bias[third])
        per_head: Tensor = part.unflatten(-1, (self.heads, -1))  # type: ignore[no-untyped-call]
        return per_head.transpose(1, 2).flatten(0, 1)


class VitMlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int, cfg: VitConfig) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = gelu(cfg.gelu)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))  # type: ignore[no-any-return]


class VitBlock(nn.Module):
    """Pre-norm attention and MLP on (B, g, g, C); ``window`` 0 attends to the whole grid of ``side`` tokens."""

    def __init__(self, cfg: VitConfig, window: int, side: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.width, eps=1e-6)
        self.attn = VitAttention(cfg.width, cfg.heads, window or side)
        self.norm2 = nn.LayerNorm(cfg.width, eps=1e-6)
        self.mlp = VitMlp(cfg.width, cfg.mlp_ratio * cfg.width, cfg)
        self.window = window

    def attend(self, x: Tensor) -> Tensor:
        """Attention in windows or on the whole grid; padding comes after the norm, so padded tokens are zeros."""
        if not self.window:
            return self.attn(x)  # type: ignore[no-any-return]
        return window_merge(self.attn(window_partition(x, self.window)), (x.shape[1], x.shape[2]))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Vit(nn.Module):
    """(B, 3, S, S) float32, normalised -> (B, out_channels, S/16, S/16)."""

    def __init__(self, cfg: VitConfig, image_size: int) -> None:
        super().__init__()
        side = image_size // cfg.patch
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, cfg.width))
        self.patch_embed = PatchEmbed(cfg.width, cfg.patch)
        self.blocks = nn.ModuleList(
            VitBlock(cfg, 0 if index in cfg.global_blocks else cfg.window, side) for index in range(cfg.depth)
        )
        self.neck = vit_neck(cfg.width, cfg.out_channels)
        self.first_global = min(cfg.global_blocks)

    def with_intermediate(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The embeddings, and what an HQ decoder reads: the first global block's output (B, C, g, g)."""
        x = self.patch_embed(x) + self.pos_embed
        early = x
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == self.first_global:
                early = x
        return self.neck(x.permute(0, 3, 1, 2)), (early.permute(0, 3, 1, 2),)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_intermediate(x)[0]


def vit_neck(inputs: int, outputs: int) -> nn.Sequential:
    """1x1 and 3x3 convolution without bias, a norm after each."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False),
        LayerNorm2d(outputs),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        LayerNorm2d(outputs),
    )
