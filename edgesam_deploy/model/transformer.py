"""SAM's two-way transformer: prompt tokens and image tokens attend to each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesam_deploy.model.configs import MaskDecoderConfig
from edgesam_deploy.model.layers import norm1d


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank pair beside its weight (arXiv 2106.09685): W + B A / rank."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__(inputs, outputs)
        self.lora_A = nn.Parameter(torch.zeros(rank, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + self.lora_B @ self.lora_A / self.lora_A.shape[0]
        return F.linear(x, weight, self.bias)


class Attention(nn.Module):
    """Multi-head attention whose inner width is the embedding's divided by ``downsample``.

    ``projections`` is the order in which q, k and v are registered; ``lora`` the rank of the pairs beside q and v.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(self, dim: int, heads: int, downsample: int = 1, *, projections: str = "qvk", lora: int = 0) -> None:
        super().__init__()
        inner = dim // downsample
        self.heads = heads
        for which in projections:
            layer = LoraLinear(dim, inner, lora) if lora and which != "k" else nn.Linear(dim, inner)
            self.add_module(f"{which}_proj", layer)
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


def _attention(dim: int, cfg: MaskDecoderConfig, downsample: int) -> Attention:
    return Attention(dim, cfg.heads, downsample, projections=cfg.projections, lora=cfg.lora)


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
        self.self_attn = _attention(dim, cfg, 1)
        self.norm1 = norm1d(cfg.norm, dim)
        self.cross_attn_token_to_image = _attention(dim, cfg, cfg.downsample)
        self.norm2 = norm1d(cfg.norm, dim)
        self.mlp = TransformerMlp(dim, cfg.mlp_dim)
        self.norm3 = norm1d(cfg.norm, dim)
        self.norm4 = norm1d(cfg.norm, dim)
        self.cross_attn_image_to_token = _attention(dim, cfg, cfg.downsample)

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
        self.final_attn_token_to_image = _attention(dim, cfg, cfg.downsample)
        self.norm_final_attn = norm1d(cfg.norm, dim)

    def forward(
        self, tokens: Tensor, image: Tensor, image_pe: Tensor, key_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """key_bias: (B, 1, 1, T), added wherever tokens are keys."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, key_bias)
        tokens = tokens + self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens), image
