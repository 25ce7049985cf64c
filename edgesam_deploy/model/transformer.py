"""SAM's two-way transformer: prompt tokens and image tokens attend to each other."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgesam_deploy.model.configs import MaskDecoderConfig


class Attention(nn.Module):
    """Multi-head attention whose inner width is the embedding's divided by ``downsample``."""

    def __init__(self, dim: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.heads = heads
        self.q_proj = nn.Linear(dim, inner)  # registered q, v, k: the order of the published optimiser states
        self.v_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)
        self.scale = (inner // heads) ** -0.5

    def split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1))  # type: ignore[no-untyped-call]
        return heads.transpose(1, 2)  # (B, heads, T, C / heads)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
        """q (B, T, C), k and v (B, K, C), batches broadcast; key_bias (B, 1, 1, K) is added to the scores."""
        queries, keys, values = (
            self.split(proj(x)) for proj, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        scores = (queries * self.scale) @ keys.transpose(-2, -1)
        if key_bias is not None:
            scores = scores + key_bias
        mixed = scores.softmax(-1) @ values
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class TransformerMlp(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))  # type: ignore[no-any-return]


class TwoWayBlock(nn.Module):
    """Self-attention of tokens, tokens to image, MLP, image to tokens; a norm after each."""

    def __init__(self, dim: int, cfg: MaskDecoderConfig, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(dim, cfg.heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, cfg.heads, cfg.downsample)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = TransformerMlp(dim, cfg.mlp_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, cfg.heads, cfg.downsample)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor, key_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.first:  # the first layer replaces the tokens: no residual, no positions
            tokens = self.self_attn(tokens, tokens, tokens, key_bias)
        else:
            placed = tokens + token_pe
            tokens = tokens + self.self_attn(placed, placed, tokens, key_bias)
        tokens = self.norm1(tokens)
        keys = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, keys, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(keys, tokens + token_pe, tokens, key_bias))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """tokens (B, T, C) and image (1 or B, P, C) -> both updated, (B, T, C) and (B, P, C).

    An image batch of 1 is broadcast to the prompts; nothing is repeated, so the work of the first layer on the image
    side is done once however many prompts there are.
    """

    def __init__(self, dim: int, cfg: MaskDecoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, cfg, first=i == 0) for i in range(cfg.depth))
        self.final_attn_token_to_image = Attention(dim, cfg.heads, cfg.downsample)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(
        self, tokens: Tensor, image: Tensor, image_pe: Tensor, key_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """key_bias: (B, 1, 1, T), added wherever tokens are keys."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, key_bias)
        tokens = tokens + self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens), image
