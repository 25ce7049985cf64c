"""TinyViT (arXiv 2207.10666) as HQ-SAM's light image encoder: convolutions first, then attention in windows.

image (B, 3, S, S) ── stem /4 ── stage 0 ── merge /8 ── stage 1 ── merge /16 ─┬─ stage 2 ── merge ── stage 3
                                 (convolutions)        an HQ decoder's feature ┘                      │
                                                                 (B, 256, S/16, S/16) ── neck ────────┘
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesam_deploy.model.configs import TinyVitConfig
from edgesam_deploy.model.layers import ConvNorm, Gelu, gelu
from edgesam_deploy.model.vit import vit_neck, window_merge, window_partition


class TinyStem(nn.Module):
    """(B, 3, S, S) -> (B, C, S/4, S/4)."""

    def __init__(self, channels: int, kind: Gelu) -> None:
        super().__init__()
        half = channels // 2
        self.seq = nn.Sequential(ConvNorm(3, half, 3, 2, 1), gelu(kind), ConvNorm(half, channels, 3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)  # type: ignore[no-any-return]


class InvertedConv(nn.Module):
    """1x1, depthwise 3x3 with ``stride``, 1x1, and a GELU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int, kind: Gelu) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, stride, 1, groups=hidden)
        self.conv3 = ConvNorm(hidden, outputs)
        self.act = gelu(kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))  # type: ignore[no-any-return]


class TinyConvBlock(InvertedConv):
    """Stage 0's block, the activation after the sum: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, expand: int, kind: Gelu) -> None:
        super().__init__(channels, expand * channels, channels, 1, kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + super().forward(x))  # type: ignore[no-any-return]


class PatchMerge(InvertedConv):
    """(B, C, H, W) -> (B, outputs, H/stride, W/stride), the end of every stage but the last."""

    def __init__(self, inputs: int, outputs: int, stride: int, kind: Gelu) -> None:
        super().__init__(inputs, outputs, outputs, stride, kind)


def offset_index(window: int) -> Tensor:
    """Which learned bias each pair of a window's cells has, (w w, w w): |dy| w + |dx|, cells row by row.

    Checkpoints number the offsets by first appearance among ordered pairs of cells. The pairs of cell 0 come first and
    have them all, so that this is the same.
    """
    cells = torch.arange(window * window)
    rows, columns = cells // window, cells % window
    return (rows[:, None] - rows[None, :]).abs() * window + (columns[:, None] - columns[None, :]).abs()


class WindowAttention(nn.Module):
    """Self-attention inside windows, its own norm first: (N, w, w, C) -> (N, w w, C).

    ``qkv`` is laid out per head as [q | k | v]. Every pair of cells adds the bias of its absolute offset.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.scale = (width // heads) ** -0.5
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.flatten(1, 2))
        q, k, v = (self._project(x, index) for index in range(3))  # (N, heads, w w, C / heads)
        bias = self.attention_biases[:, offset_index(self.window).to(x.device)]
        mixed = ((q * self.scale) @ k.transpose(2, 3) + bias).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _project(self, x: Tensor, index: int) -> Tensor:
        """Queries, keys or values from a third of the weights: cutting those, not the result, leaves nothing behind."""
        layers = (t.reshape(self.heads, 3, -1, *t.shape[1:])[:, index] for t in self.qkv.parameters())
        weight, bias = (layer.flatten(0, 1) for layer in layers)
        part: Tensor = F.linear(x, weight, bias).unflatten(-1, (self.heads, -1))  # type: ignore[no-untyped-call]
        return part.transpose(1, 2)


class TinyMlp(nn.Module):
    """Norm, linear, GELU, linear."""

    def __init__(self, width: int, hidden: int, kind: Gelu) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.act = gelu(kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(self.norm(x))))  # type: ignore[no-any-return]


class TinyBlock(nn.Module):
    """Attention in windows, a depthwise 3x3 without residual, an MLP: (B, C, H, W) -> the same."""

    def __init__(self, width: int, heads: int, window: int, cfg: TinyVitConfig) -> None:
        super().__init__()
        self.attn = WindowAttention(width, heads, window)
        self.mlp = TinyMlp(width, cfg.mlp_ratio * width, cfg.gelu)
        self.local_conv = ConvNorm(width, width, 3, 1, 1, groups=width)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        # padded before the norm, unlike SAM's ViT: a padded cell reaches the keys as the norm's bias, not as zero
        mixed = self.attn(window_partition(x, self.window)).unflatten(1, (self.window, self.window))
        x = x + window_merge(mixed, (x.shape[1], x.shape[2]))
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (x + self.mlp(x)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class TinyStage(nn.Module):
    """``blocks``, then ``downsample`` where the stage has one."""

    def __init__(self, blocks: list[nn.Module], downsample: PatchMerge | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.downsample is None else self.downsample(x)


class TinyVit(nn.Module):
    """(B, 3, S, S) float32, normalised -> (B, out_channels, S/16, S/16).

    ``image_size`` is there as in ``Vit``: nothing depends on it, since all positions are relative.
    """

    def __init__(self, cfg: TinyVitConfig, image_size: int) -> None:
        super().__init__()
        self.patch_embed = TinyStem(cfg.widths[0], cfg.gelu)
        self.layers = nn.ModuleList(_stage(cfg, index) for index in range(len(cfg.widths)))
        if cfg.head_classes:  # the classifier it was trained with lies in the checkpoint; nothing runs it
            self.norm_head = nn.LayerNorm(cfg.widths[-1])
            self.head = nn.Linear(cfg.widths[-1], cfg.head_classes)
        self.neck = vit_neck(cfg.widths[-1], cfg.out_channels)

    def with_intermediate(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The embeddings, and what an HQ decoder reads: stage 1's output after its merging, (B, C, S/16, S/16)."""
        early = x = self.patch_embed(x)
        for index, stage in enumerate(self.layers):
            x = stage(x)
            if index == 1:
                early = x
        return self.neck(x), (early,)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_intermediate(x)[0]


def _stage(cfg: TinyVitConfig, index: int) -> TinyStage:
    width, last = cfg.widths[index], len(cfg.widths) - 1
    blocks: list[nn.Module] = [
        TinyBlock(width, cfg.heads[index], cfg.windows[index], cfg)
        if index
        else TinyConvBlock(width, cfg.conv_expand, cfg.gelu)
        for _ in range(cfg.depths[index])
    ]
    # the last merging changes channels only: SAM's embeddings have a sixteenth of the image's side
    merge = PatchMerge(width, cfg.widths[index + 1], 1 if index == last - 1 else 2, cfg.gelu) if index < last else None
    return TinyStage(blocks, merge)
