"""CWSAM's image encoder: SAM's ViT with adapters in every block, a prompt before it, and experts in the late ones.

image (1, 3, S, S) ── patches + positions ── blocks, each on tokens + its prompt ── neck ── (1, 256, g, g), g = S/16
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesam_deploy.model.cwsam.configs import CwsamEncoderConfig, ExpertsConfig
from edgesam_deploy.model.cwsam.experts import expert_mlp
from edgesam_deploy.model.cwsam.fft_prompts import PromptGenerator
from edgesam_deploy.model.vit import PatchEmbed, VitAttention, vit_neck, window_merge, window_partition


class Adapter(nn.Module):
    """D -> D/4, GELU, D/4 -> D (AIM, arXiv 2302.03024)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.D_fc1 = nn.Linear(width, width // 4)
        self.D_fc2 = nn.Linear(width // 4, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.D_fc2(F.gelu(self.D_fc1(x)))  # type: ignore[no-any-return]


class CwsamBlock(nn.Module):
    """Pre-norm attention and MLP on (1, g, g, D), an adapter after the one and beside the other.

    ``window`` 0 attends to the whole grid of ``side`` tokens. ``Depth_Adapter`` takes no part: checkpoints have it.
    """

    def __init__(self, cfg: CwsamEncoderConfig, window: int, side: int, experts: ExpertsConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.width, eps=1e-6)
        self.attn = VitAttention(cfg.width, cfg.heads, window or side)
        self.MLP_Adapter = Adapter(cfg.width)
        self.Space_Adapter = Adapter(cfg.width)
        self.Depth_Adapter = Adapter(cfg.width)
        self.norm2 = nn.LayerNorm(cfg.width, eps=1e-6)
        self.mlp = expert_mlp(cfg.width, cfg.mlp_ratio * cfg.width, experts, "gelu")
        self.window = window

    def attend(self, x: Tensor) -> Tensor:
        """Attention and its adapter, in windows or on the whole grid.

        Padding comes after the norm: padded tokens are zeros that are attended to. The adapter sees them too, but it
        works token by token and they are cut off.
        """
        grid = (x.shape[1], x.shape[2])
        x = self.attn(window_partition(x, self.window) if self.window else x)
        x = x + self.Space_Adapter(x)
        return window_merge(x, grid) if self.window else x

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        y = self.norm2(x)
        return x + self.mlp(y) + 0.5 * self.MLP_Adapter(y)  # type: ignore[no-any-return]


class CwsamEncoder(nn.Module):
    """(1, 3, S, S) float32, normalised -> (1, ``outputs``, S/16, S/16)."""

    def __init__(self, cfg: CwsamEncoderConfig, image_size: int, outputs: int) -> None:
        super().__init__()
        side = image_size // cfg.patch
        dense = ExpertsConfig()
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, cfg.width))
        self.patch_embed = PatchEmbed(cfg.width, cfg.patch)
        self.blocks = nn.ModuleList(
            CwsamBlock(
                cfg,
                window=0 if index in cfg.global_blocks else cfg.window,
                side=side,
                experts=cfg.experts if index >= cfg.experts.first_block else dense,
            )
            for index in range(cfg.depth)
        )
        self.neck = vit_neck(cfg.width, outputs)
        self.prompt_generator = PromptGenerator(cfg, image_size)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        features = self.prompt_generator.features(image, x)  # of the patches before positions are added
        x = x + self.pos_embed
        for index, block in enumerate(self.blocks):
            x = block(x + self.prompt_generator(features, index))
        return self.neck(x.permute(0, 3, 1, 2))  # type: ignore[no-any-return]
