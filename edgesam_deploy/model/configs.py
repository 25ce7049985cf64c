"""What is built under which name: frozen dataclasses, one table.

A new variant is one entry of ``MODELS``. Sizes that have no name are reached by ``override(config, mapping)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edgesam_deploy.errors import UnknownName, UsageError
from edgesam_deploy.model.cwsam.configs import CWSAM_MODELS, CwsamConfig

RepLayout = Literal["original", "dyt_fork"]
Upsample = Literal["bicubic", "bilinear"]
GeluKind = Literal["erf", "tanh"]
NormKind = Literal["layer", "dyt"]
HqKind = Literal["none", "early", "late"]


@dataclass(frozen=True)
class RepVitConfig:
    """RepViT image encoder (arXiv 2307.09283) with EdgeSAM's neck (arXiv 2312.06660).

    ``squeeze`` holds the indices, in the flat list of blocks, of those with squeeze-and-excite.
    ``rep_layout`` is how the depthwise pair is stored: ``original`` (both branches convolution + batch norm) or
    ``dyt_fork`` (plain 1x1 with bias, and one more batch norm over the sum).
    """

    channels: tuple[int, ...] = (48, 96, 192, 384)
    depths: tuple[int, ...] = (3, 4, 16, 3)
    squeeze: tuple[int, ...] = (0, 4, 8, 10, 12, 14, 16, 18, 20, 24)
    out_channels: int = 256
    fuse: bool = True
    upsample: Upsample = "bicubic"
    gelu: GeluKind = "erf"
    norm: NormKind = "layer"  # of the neck; ``dyt`` is the dynamic tanh of arXiv 2503.10622
    rep_layout: RepLayout = "original"

    @property
    def early_channels(self) -> tuple[int, ...]:
        """Channels of the stem and the first two stages, the features of an ``early`` HQ decoder."""
        return (self.channels[0], *self.channels[:2])


@dataclass(frozen=True)
class VitConfig:
    """SAM's plain ViT (arXiv 2304.02643) after ViTDet (arXiv 2203.16527): windows, some blocks global.

    ``window`` is in tokens, a token is ``patch`` pixels; blocks in ``global_blocks`` attend to the whole grid.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    patch: int = 16
    mlp_ratio: int = 4
    out_channels: int = 256
    gelu: GeluKind = "erf"

    @property
    def late_channels(self) -> int:
        """Channels of the first global block's output, the feature of a ``late`` HQ decoder."""
        return self.width


@dataclass(frozen=True)
class TinyVitConfig:
    """TinyViT (arXiv 2207.10666) as HQ-SAM's light encoder: one entry per stage, the first stage convolutional."""

    widths: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 5, 10)
    windows: tuple[int, ...] = (7, 7, 14, 7)
    mlp_ratio: int = 4
    conv_expand: int = 4
    out_channels: int = 256
    gelu: GeluKind = "erf"
    head_classes: int = 1000  # of the classifier that lies unused in the checkpoint; 0 where it was removed

    @property
    def late_channels(self) -> int:
        """Channels after the second stage's merging, the feature of a ``late`` HQ decoder."""
        return self.widths[2]


EncoderConfig = RepVitConfig | VitConfig | TinyVitConfig

M1 = RepVitConfig()
M2 = RepVitConfig((64, 128, 256, 512), (3, 4, 14, 3), (0, 4, 8, 10, 12, 14, 16, 18, 22))
M3 = RepVitConfig((64, 128, 256, 512), (5, 6, 20, 3), (0, 2, 6, 8, *range(12, 30, 2), 32))
DEMO = RepVitConfig((16, 32, 64, 128), (1, 1, 4, 1), (0, 2, 4), out_channels=128)
M1_DYT = RepVitConfig(gelu="tanh", norm="dyt", rep_layout="dyt_fork")
VIT_B = VitConfig()
VIT_L = VitConfig(1024, 24, 16, (5, 11, 17, 23))
VIT_H = VitConfig(1280, 32, 16, (7, 15, 23, 31))


@dataclass(frozen=True)
class MaskDecoderConfig:
    """SAM's two-way transformer and mask decoder (arXiv 2304.02643, appendix A).

    ``hq``: none; ``early``, EdgeSAM-DyT-HQ's branch on the encoder's first three features; ``late``, HQ-SAM's
    (arXiv 2306.01567) on one feature of a transformer. ``projections`` is the order in which attention registers its
    matrices, which is that of published optimiser states; ``lora`` the rank of the pairs beside q and v, 0 for none.
    """

    depth: int = 2
    heads: int = 8
    mlp_dim: int = 2048
    downsample: int = 2
    mask_tokens: int = 4
    gelu: GeluKind = "erf"
    norm: NormKind = "layer"
    hq: HqKind = "none"
    projections: Literal["qvk", "qkv"] = "qvk"
    lora: int = 0


DYT_DECODER = MaskDecoderConfig(gelu="tanh", norm="dyt")
HQ_DECODER = MaskDecoderConfig(hq="late", projections="qkv")


S_LAB = "NTU S-Lab License 1.0 (non-commercial)"
APACHE = "Apache-2.0"


@dataclass(frozen=True)
class SamConfig:
    """One promptable model. ``image_size`` is the side of the square model frame, a multiple of 64, in pixels.

    Without a ``mask_decoder`` it is an image encoder alone, what the first phase of distillation leaves behind.
    """

    image_encoder: EncoderConfig = M1
    mask_decoder: MaskDecoderConfig | None = field(default_factory=MaskDecoderConfig)
    image_size: int = 1024
    embed_dim: int = 256
    licence: str = S_LAB
    description: str = ""


def _hq(encoder: EncoderConfig, text: str) -> SamConfig:
    return SamConfig(encoder, HQ_DECODER, licence=APACHE, description=text)


def _sam(encoder: EncoderConfig, text: str) -> SamConfig:
    return SamConfig(encoder, licence=APACHE, description=text)


MODELS: dict[str, SamConfig | CwsamConfig] = {
    "edge_sam": SamConfig(description="EdgeSAM, RepViT-M1 (arXiv 2312.06660)"),
    "edge_sam_demo": SamConfig(
        DEMO, MaskDecoderConfig(mlp_dim=256), 256, 128, APACHE, "a small EdgeSAM whose weights come along"
    ),
    "edge_sam_m2": SamConfig(M2, description="EdgeSAM with the RepViT-M2 encoder"),
    "edge_sam_m3": SamConfig(M3, description="EdgeSAM with the RepViT-M3 encoder"),
    "edge_sam_dyt": SamConfig(M1_DYT, DYT_DECODER, description="EdgeSAM-DyT: dynamic tanh instead of norms"),
    "edge_sam_dyt_frozen_mask": SamConfig(M1_DYT, description="EdgeSAM-DyT's encoder with EdgeSAM's own decoder"),
    "edge_sam_dyt_hq": SamConfig(
        M1_DYT, replace(DYT_DECODER, hq="early"), description="EdgeSAM-DyT with a high-quality mask branch"
    ),
    "vit_b": _sam(VIT_B, "Segment Anything, ViT-B (arXiv 2304.02643)"),
    "vit_l": _sam(VIT_L, "Segment Anything, ViT-L"),
    "vit_h": _sam(VIT_H, "Segment Anything, ViT-H"),
    "sam_hq_vit_b": _hq(VIT_B, "HQ-SAM, ViT-B (arXiv 2306.01567)"),
    "sam_hq_vit_l": _hq(VIT_L, "HQ-SAM, ViT-L"),
    "sam_hq_vit_h": _hq(VIT_H, "HQ-SAM, ViT-H"),
    "sam_hq_vit_tiny": _hq(TinyVitConfig(), "Light HQ-SAM, TinyViT"),
    "repvit_m1": SamConfig(M1, None, description="EdgeSAM's image encoder alone (encoder-only checkpoints)"),
    "repvit_m2": SamConfig(M2, None, description="RepViT-M2 image encoder alone"),
    "repvit_m3": SamConfig(M3, None, description="RepViT-M3 image encoder alone"),
    "repvit_m1_dyt": SamConfig(M1_DYT, None, description="EdgeSAM-DyT's image encoder alone"),
    **CWSAM_MODELS,
}
# what scripts of the field call them; vit_h_hq is the DyT fork's teacher
ALIASES: dict[str, str] = {
    "default": "edge_sam",
    "vit_tiny": "sam_hq_vit_tiny",
    "vit_h_hq": "sam_hq_vit_h",
    "sam_moe_3b": "cwsam_moe_3b",
    "sam_hierarchical_moe_10b": "cwsam_hierarchical_moe_10b",
}


def intermediate_channels(encoder: EncoderConfig) -> tuple[int, ...]:
    """Channels of the features that an HQ decoder on this encoder reads."""
    return encoder.early_channels if isinstance(encoder, RepVitConfig) else (encoder.late_channels,)


def intermediate_shapes(config: SamConfig) -> tuple[tuple[int, int, int], ...]:
    """(channels, height, width) of the same."""
    size = config.image_size
    strides = (4, 4, 8) if isinstance(config.image_encoder, RepVitConfig) else (16,)
    channels = intermediate_channels(config.image_encoder)
    return tuple((c, size // stride, size // stride) for c, stride in zip(channels, strides, strict=True))


def model_config(name: str) -> SamConfig | CwsamConfig:
    """The configuration of a model name or alias. Raises UnknownName, which lists the closest names."""
    config = MODELS.get(ALIASES.get(name, name))
    if config is None:
        raise UnknownName("model", name, [*MODELS, *ALIASES])
    return config


def override(config: Any, changes: Mapping[str, Any], *, where: str = "config") -> Any:
    """``config`` with the fields named in ``changes`` replaced; nested mappings reach nested dataclasses.

    Raises UsageError for a field that does not exist or a value that is not of its declared type.
    """
    if not isinstance(changes, Mapping):
        raise UsageError(f"{where}: expected a mapping of fields, got {changes!r}")
    known = {f.name for f in fields(config)}
    types = get_type_hints(type(config))
    values: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in known:
            raise UsageError(f"{where}: no field {key!r}; fields: {', '.join(sorted(known))}")
        current = getattr(config, key)
        if is_dataclass(current):
            values[key] = override(current, value, where=f"{where}.{key}")
        elif current is None and value is None:
            values[key] = None
        else:
            values[key] = _typed(value, types[key], f"{where}.{key}")
    return replace(config, **values)


def _typed(value: Any, kind: Any, where: str) -> Any:
    """``value`` if it is of a field's type: a number, a word, one of some words, or a list of numbers."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UsageError(f"{where}: must be {' or '.join(map(str, get_args(kind)))}, got {value!r}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: expected a list, got {value!r}")
        return tuple(_typed(entry, get_args(kind)[0], where) for entry in value)
    accepted = (int, float) if kind is float else kind
    if (
        not isinstance(accepted, type | tuple)
        or not isinstance(value, accepted)
        or isinstance(value, bool) != (kind is bool)
    ):
        raise UsageError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}")
    return value


def check(config: SamConfig) -> None:
    """Raise UsageError for a configuration that no network can be built from."""
    encoder, size = config.image_encoder, config.image_size
    if size % 64 or not 64 <= size <= 4096:
        raise UsageError(f"image_size {size}: must be a multiple of 64 between 64 and 4096")
    _CHECKS[type(encoder)](encoder)
    if encoder.out_channels != config.embed_dim:
        raise UsageError(f"image_encoder.out_channels {encoder.out_channels} is not embed_dim {config.embed_dim}")
    decoder = config.mask_decoder
    if decoder is None:
        return
    if decoder.mask_tokens != 4:
        raise UsageError(f"mask_decoder.mask_tokens {decoder.mask_tokens}: every model and layout here has 4")
    if min(decoder.heads, decoder.downsample, decoder.mlp_dim, decoder.depth) < 1 or decoder.lora < 0:
        raise UsageError("mask_decoder: depth, heads, mlp_dim and downsample must be at least 1, lora at least 0")
    if config.embed_dim % 8 or config.embed_dim // decoder.downsample % decoder.heads:
        raise UsageError(
            f"embed_dim {config.embed_dim} with downsample {decoder.downsample} "
            f"does not divide into {decoder.heads} heads"
        )
    fitting = "early" if isinstance(encoder, RepVitConfig) else "late"
    if decoder.hq not in ("none", fitting):
        raise UsageError(f"mask_decoder.hq {decoder.hq}: this encoder has features for {fitting} only")


def _check_repvit(encoder: RepVitConfig) -> None:
    if len(encoder.channels) != 4 or len(encoder.depths) != 4 or min(*encoder.depths, *encoder.channels) < 1:
        raise UsageError("image_encoder: channels and depths need four entries of at least 1, one per stage")
    if any(c % 8 for c in encoder.channels):
        raise UsageError(f"image_encoder.channels {encoder.channels}: each must be a multiple of 8")
    if any(not 0 <= i < sum(encoder.depths) for i in encoder.squeeze):
        raise UsageError(f"image_encoder.squeeze {encoder.squeeze}: indices run from 0 to {sum(encoder.depths) - 1}")


def _check_vit(encoder: VitConfig) -> None:
    if min(encoder.width, encoder.depth, encoder.heads, encoder.window, encoder.mlp_ratio) < 1:
        raise UsageError("image_encoder: width, depth, heads, window and mlp_ratio must be at least 1")
    if encoder.width % encoder.heads:
        raise UsageError(f"image_encoder.width {encoder.width} does not divide into {encoder.heads} heads")
    if encoder.patch != 16:
        raise UsageError(f"image_encoder.patch {encoder.patch}: the mask decoder is made for patches of 16 pixels")
    blocks = encoder.global_blocks
    if not blocks or any(not 0 <= i < encoder.depth for i in blocks):
        raise UsageError(f"image_encoder.global_blocks {blocks}: at least one, from 0 to {encoder.depth - 1}")


def _check_tiny_vit(encoder: TinyVitConfig) -> None:
    lists = (encoder.widths, encoder.depths, encoder.heads, encoder.windows)
    if any(len(entries) != 4 or min(entries) < 1 for entries in lists):
        raise UsageError("image_encoder: widths, depths, heads and windows need four entries of at least 1")
    if min(encoder.mlp_ratio, encoder.conv_expand) < 1 or encoder.head_classes < 0:
        raise UsageError("image_encoder: mlp_ratio and conv_expand must be at least 1, head_classes at least 0")
    for width, heads in zip(encoder.widths[1:], encoder.heads[1:], strict=True):
        if width % heads:
            raise UsageError(f"image_encoder.widths {encoder.widths}: {width} does not divide into {heads} heads")


_CHECKS: dict[type, Callable[[Any], None]] = {
    RepVitConfig: _check_repvit,
    VitConfig: _check_vit,
    TinyVitConfig: _check_tiny_vit,
}
