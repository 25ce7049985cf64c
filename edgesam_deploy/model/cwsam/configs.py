"""CWSAM (ClassWise-SAM-Adapter, arXiv 2401.02326) and its two mixture-of-experts descendants, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

ExpertKind = Literal["dense", "token", "groups"]


@dataclass(frozen=True)
class ExpertsConfig:
    """What stands in place of an MLP.

    ``dense``: one MLP. ``token``: ``count`` experts, each token takes its ``chosen`` best (softmax over those).
    ``groups``: ``groups`` of ``count`` experts; each token goes to one group, in which every expert takes the tokens
    that it likes best, int(capacity * tokens / count) of them (expert choice); an expert is cut into ``shards``.
    Blocks before ``first_block`` keep the MLP.
    """

    kind: ExpertKind = "dense"
    count: int = 16
    chosen: int = 4
    first_block: int = 28
    groups: int = 3
    capacity: float = 1.5
    shards: int = 4


@dataclass(frozen=True)
class CwsamEncoderConfig:
    """SAM's ViT with adapters and a prompt per block made from the low-pass filtered picture."""

    width: int = 1280
    depth: int = 32
    heads: int = 16
    global_blocks: tuple[int, ...] = (7, 15, 23, 31)
    window: int = 14
    patch: int = 16
    mlp_ratio: int = 4
    prompt_scale: int = 32  # the prompt generator works at width // prompt_scale
    pass_rate: float = 0.25  # share of the spectrum that the filter keeps
    clamp_rate: bool = True  # limits the rate to 0.01..0.99 and the half-width to at least 1
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)


@dataclass(frozen=True)
class CwsamDecoderConfig:
    """SAM's mask decoder with a skip connection and a head per class.

    ``experts`` stands in the two-way transformer, ``head_experts`` in the hypernetworks and the IoU head.
    """

    depth: int = 2
    heads: int = 8
    mlp_dim: int = 2048
    downsample: int = 2
    mask_tokens: int = 4
    iou_hidden: int = 256
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    head_experts: ExpertsConfig = field(default_factory=ExpertsConfig)


@dataclass(frozen=True)
class CwsamConfig:
    """One semantic model: picture (1, 3, S, S) to class logits (1, classes, S, S), S = ``image_size`` exactly."""

    image_encoder: CwsamEncoderConfig = field(default_factory=CwsamEncoderConfig)
    mask_decoder: CwsamDecoderConfig = field(default_factory=CwsamDecoderConfig)
    image_size: int = 1024
    embed_dim: int = 256
    classes: int = 33
    class_weights: bool = True  # the checkpoint holds the loss's weights per class
    licence: str = "none given: all rights reserved by its authors"
    description: str = ""


_TOKEN = ExpertsConfig("token", 16, 4, 28)
_PAIRS = ExpertsConfig("token", 16, 2, 0)
_GROUPS = ExpertsConfig("groups", 16, 4, 24)
_MANY = ExpertsConfig("token", 126, 2, 0)

CWSAM_MODELS: dict[str, CwsamConfig] = {
    "cwsam": CwsamConfig(
        CwsamEncoderConfig(768, 12, 12, (2, 5, 8, 11), clamp_rate=False),
        classes=10,
        description="CWSAM, dense ViT-B (arXiv 2401.02326)",
    ),
    "cwsam_moe_3b": CwsamConfig(
        CwsamEncoderConfig(experts=_TOKEN),
        CwsamDecoderConfig(experts=_PAIRS),
        description="CWSAM with 16 token-choice experts: 1.54 billion parameters, whatever its name says",
    ),
    "cwsam_hierarchical_moe_10b": CwsamConfig(
        CwsamEncoderConfig(depth=38, experts=_GROUPS),
        CwsamDecoderConfig(depth=4, experts=_MANY, head_experts=_MANY),
        image_size=512,
        description="CWSAM with 3 groups of 16 expert-choice experts: 6.79 billion parameters",
    ),
}
