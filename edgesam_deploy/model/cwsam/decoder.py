"""CWSAM's mask decoder: SAM's without prompts, with a skip connection and a map per class.

features + no_mask ──┬── two-way transformer ── upscale ──┐
                     └──────── the same upscale ──────── cat ── up, norm, GELU, 7x7 stride 2 ── (c, class) maps
mask token 0 ── hypernetwork ── c weights ─────────────────────────── sum over c ── logits (1, classes, 4g, 4g)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesam_deploy.model.configs import MaskDecoderConfig
from edgesam_deploy.model.cwsam.configs import CwsamDecoderConfig
from edgesam_deploy.model.cwsam.experts import TokenChoice, expert_mlp
from edgesam_deploy.model.layers import LayerNorm2d, Mlp
from edgesam_deploy.model.transformer import TwoWayTransformer

# the 7x7 convolution's output is the largest tensor after the encoder, 277 MB at 33 classes and 1024 pixels; a quarter
# of it is the size of its input
CLASS_CHUNKS = 4


class ClassHead(nn.Sequential):
    """(1, 2c, 4g, 4g) and weights (1, c) -> logits (1, classes, 4g, 4g).

    The convolution's channels are c * classes + class, so a class's are not neighbours: its weights are re-read as
    (c, classes, ...), and a chunk of classes is a slice of that. In a trace this is arithmetic on constants.
    """

    def __init__(self, dim: int, classes: int) -> None:
        inputs, outputs = dim // 4, dim // 8 * classes
        super().__init__(
            nn.ConvTranspose2d(inputs, inputs, 2, 2), LayerNorm2d(inputs), nn.GELU(),
            nn.Conv2d(inputs, outputs, 7, stride=2, padding=3),
        )  # fmt: skip
        self.classes = classes

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:  # type: ignore[override]
        up, norm, act, conv = self
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        x = act(norm(up(x)))
        by_class = (weights.shape[1], self.classes)
        kernels = conv.weight.reshape(*by_class, *conv.weight.shape[1:])
        biases = conv.bias.reshape(by_class)
        step = -(-self.classes // CLASS_CHUNKS)
        chunks = [slice(first, first + step) for first in range(0, self.classes, step)]
        return torch.cat([self.logits(x, kernels[:, chunk], biases[:, chunk], weights) for chunk in chunks], 1)

    def logits(self, x: Tensor, kernel: Tensor, bias: Tensor, weights: Tensor) -> Tensor:
        """Of a chunk of n classes: kernel (c, n, 2c, 7, 7), bias (c, n) -> (1, n, 4g, 4g)."""
        maps = F.gelu(F.conv2d(x, kernel.flatten(0, 1), bias.flatten(), stride=2, padding=3))
        mixed = weights @ maps.reshape(weights.shape[1], -1)
        return mixed.reshape(1, bias.shape[1], *maps.shape[2:])


class CwsamDecoder(nn.Module):
    """Only the first mask token's hypernetwork is evaluated: the others and the IoU head do not touch the classes."""

    def __init__(self, dim: int, cfg: CwsamDecoderConfig, classes: int) -> None:
        super().__init__()
        self.transformer = _transformer(dim, cfg)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(cfg.mask_tokens, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, 2), LayerNorm2d(dim // 4), nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, 2), nn.GELU(),
        )  # fmt: skip
        self.output_hypernetworks_mlps = nn.ModuleList(_head(dim, dim, dim // 8, cfg) for _ in range(cfg.mask_tokens))
        self.iou_prediction_head = _head(dim, cfg.iou_hidden, cfg.mask_tokens, cfg)
        self.cls_upscaling = ClassHead(dim, classes)

    def forward(self, source: Tensor, image_pe: Tensor) -> Tensor:
        """source (features + no-mask embedding) and image_pe, both (1, C, g, g) -> (1, classes, 4g, 4g)."""
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])[None]
        tokens, image = self.transformer(tokens, source.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2))
        attended = image.transpose(1, 2).reshape(source.shape)
        upscaled = torch.cat([self.output_upscaling(attended), self.output_upscaling(source)], 1)
        return self.cls_upscaling(upscaled, self.output_hypernetworks_mlps[0](tokens[:, 1]))  # type: ignore[no-any-return]


def _transformer(dim: int, cfg: CwsamDecoderConfig) -> TwoWayTransformer:
    """SAM's, with experts in the layers' MLPs."""
    sam = MaskDecoderConfig(cfg.depth, cfg.heads, cfg.mlp_dim, cfg.downsample, cfg.mask_tokens, projections="qkv")
    transformer = TwoWayTransformer(dim, sam)
    for layer in transformer.layers:
        layer.mlp = expert_mlp(dim, cfg.mlp_dim, cfg.experts, "relu")
    return transformer


def _head(dim: int, hidden: int, outputs: int, cfg: CwsamDecoderConfig) -> nn.Module:
    """SAM's three-layer MLP, or experts and one linear layer."""
    if cfg.head_experts.kind == "dense":
        return Mlp(dim, hidden, outputs, 3)
    return nn.Sequential(TokenChoice(dim, hidden, cfg.head_experts, "gelu"), nn.Linear(dim, outputs))
