"""What is built under which name: frozen dataclasses, one table.

A new variant is one entry of ``MODELS``. Sizes that have no name are reached by ``override(config, mapping)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from edgesam_deploy.errors import UnknownName, UsageError

RepLayout = Literal["original", "dyt_fork"]
Upsample = Literal["bicubic", "bilinear"]
GeluKind = Literal["erf", "tanh"]


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
    rep_layout: RepLayout = "original"


M1 = RepVitConfig()
M2 = RepVitConfig((64, 128, 256, 512), (3, 4, 14, 3), (0, 4, 8, 10, 12, 14, 16, 18, 22))
M3 = RepVitConfig((64, 128, 256, 512), (5, 6, 20, 3), (0, 2, 6, 8, *range(12, 30, 2), 32))


@dataclass(frozen=True)
class MaskDecoderConfig:
    """SAM's two-way transformer and mask decoder (arXiv 2304.02643, appendix A)."""

    depth: int = 2
    heads: int = 8
    mlp_dim: int = 2048
    downsample: int = 2
    mask_tokens: int = 4
    gelu: GeluKind = "erf"


@dataclass(frozen=True)
class SamConfig:
    """One model. ``image_size`` is the side of the square model frame, a multiple of 64, in pixels.

    Without a ``mask_decoder`` it is an image encoder alone, what the first phase of distillation leaves behind.
    """

    image_encoder: RepVitConfig = M1
    mask_decoder: MaskDecoderConfig | None = field(default_factory=MaskDecoderConfig)
    image_size: int = 1024
    embed_dim: int = 256
    licence: str = "NTU S-Lab License 1.0 (non-commercial)"
    description: str = ""


MODELS: dict[str, SamConfig] = {
    "edge_sam": SamConfig(description="EdgeSAM, RepViT-M1 (arXiv 2312.06660)"),
    "edge_sam_m2": SamConfig(M2, description="EdgeSAM with the RepViT-M2 encoder"),
    "edge_sam_m3": SamConfig(M3, description="EdgeSAM with the RepViT-M3 encoder"),
    "repvit_m1": SamConfig(M1, None, description="EdgeSAM's image encoder alone (encoder-only checkpoints)"),
    "repvit_m2": SamConfig(M2, None, description="RepViT-M2 image encoder alone"),
    "repvit_m3": SamConfig(M3, None, description="RepViT-M3 image encoder alone"),
}
ALIASES: dict[str, str] = {"default": "edge_sam"}


def model_config(name: str) -> SamConfig:
    """The configuration of a model name or alias. Raises UnknownName, which lists the closest names."""
    config = MODELS.get(ALIASES.get(name, name))
    if config is None:
        raise UnknownName("model", name, [*MODELS, *ALIASES])
    return config


def override(config: Any, changes: Mapping[str, Any], *, where: str = "config") -> Any:
    """``config`` with the fields named in ``changes`` replaced; nested mappings reach nested dataclasses.

    Raises UsageError for a field that does not exist or a value that does not fit it.
    """
    known = {f.name for f in fields(config)}
    values: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in known:
            raise UsageError(f"{where}: no field {key!r}; fields: {', '.join(sorted(known))}")
        current = getattr(config, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise UsageError(f"{where}.{key}: expected a mapping of fields, got {type(value).__name__}")
            value = override(current, value, where=f"{where}.{key}")
        elif isinstance(current, tuple):
            value = tuple(value)
        elif not isinstance(value, type(current)):
            raise UsageError(f"{where}.{key}: expected {type(current).__name__}, got {value!r}")
        values[key] = value
    return replace(config, **values)


def check(config: SamConfig) -> None:
    """Raise UsageError for a configuration that no network can be built from."""
    encoder, size = config.image_encoder, config.image_size
    if size % 64 or not 64 <= size <= 4096:
        raise UsageError(f"image_size {size}: must be a multiple of 64 between 64 and 4096")
    if len(encoder.channels) != 4 or len(encoder.depths) != 4 or min(encoder.depths) < 1:
        raise UsageError("image_encoder: channels and depths need four entries of at least 1, one per stage")
    if any(c % 8 for c in encoder.channels):
        raise UsageError(f"image_encoder.channels {encoder.channels}: each must be a multiple of 8")
    if any(not 0 <= i < sum(encoder.depths) for i in encoder.squeeze):
        raise UsageError(f"image_encoder.squeeze {encoder.squeeze}: indices run from 0 to {sum(encoder.depths) - 1}")
    if encoder.out_channels != config.embed_dim:
        raise UsageError(f"image_encoder.out_channels {encoder.out_channels} is not embed_dim {config.embed_dim}")
    decoder = config.mask_decoder
    if decoder is not None and (config.embed_dim % 8 or config.embed_dim // decoder.downsample % decoder.heads):
        raise UsageError(
            f"embed_dim {config.embed_dim} with downsample {decoder.downsample} "
            f"does not divide into {decoder.heads} heads"
        )
