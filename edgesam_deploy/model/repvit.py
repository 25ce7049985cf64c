"""RepViT image encoder with EdgeSAM's feature-fusing neck.

image (B, 3, S, S) ── stem /4 ── stage0 /4 ── stage1 /8 ── stage2 /16 ── stage3 /32
                                                             │1x1           │1x1, x2 upsampling
                                                             └──────(+)─────┘
                                                              1x1, norm, 3x3, norm ── (B, 256, S/16, S/16)
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgesam_deploy.model.configs import RepVitConfig, Upsample
from edgesam_deploy.model.layers import ConvNorm, Gelu, SqueezeExcite, gelu, norm2d


class RepVggDw(nn.Module):
    """Depthwise pair in its original layout: y = BN(dw3x3(x)) + BN(dw1x1(x)) + x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, channels, 3, 1, 1, groups=channels)
        self.conv1 = ConvNorm(channels, channels, 1, 1, 0, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.conv1(x) + x  # type: ignore[no-any-return]


class RepVggDwOuterNorm(nn.Module):
    """Depthwise pair as the DyT fork stores it: y = BN(BN(dw3x3(x)) + dw1x1(x) + x), the 1x1 with bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, channels, 3, 1, 1, groups=channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x) + self.conv1(x) + x)  # type: ignore[no-any-return]


class ChannelMixer(nn.Module):
    """x + 1x1(GELU(1x1(x))) with twice the channels between."""

    def __init__(self, channels: int, kind: Gelu) -> None:
        super().__init__()
        self.m = nn.Sequential(ConvNorm(channels, 2 * channels), gelu(kind), ConvNorm(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)  # type: ignore[no-any-return]


class RepVitBlock(nn.Module):
    """Token mixer (depthwise) then channel mixer (pointwise); ``stride`` 2 halves the map and changes channels."""

    def __init__(self, inputs: int, outputs: int, *, downsample: bool, stride: int, squeeze: bool, cfg: RepVitConfig):
        super().__init__()
        gate = SqueezeExcite(inputs) if squeeze else nn.Identity()
        if downsample:
            depthwise: nn.Module = ConvNorm(inputs, inputs, 3, stride, 1, groups=inputs)
            self.token_mixer = nn.Sequential(depthwise, gate, ConvNorm(inputs, outputs))
        else:
            depthwise = RepVggDw(inputs) if cfg.rep_layout == "original" else RepVggDwOuterNorm(inputs)
            self.token_mixer = nn.Sequential(depthwise, gate)
        self.channel_mixer = ChannelMixer(outputs, cfg.gelu)

    def forward(self, x: Tensor) -> Tensor:
        return self.channel_mixer(self.token_mixer(x))  # type: ignore[no-any-return]


class UpsampleFuse(nn.Module):
    """1x1 convolution without bias, then x2 interpolation (``align_corners=False``)."""

    def __init__(self, inputs: int, outputs: int, mode: Upsample) -> None:
        super().__init__()
        self.op_list = nn.ModuleList([nn.Conv2d(inputs, outputs, 1, bias=False)])
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.op_list[0](x), scale_factor=2, mode=self.mode, align_corners=False)


class RepVit(nn.Module):
    """(B, 3, S, S) float32, normalised -> (B, out_channels, S/16, S/16)."""

    def __init__(self, cfg: RepVitConfig) -> None:
        super().__init__()
        first = cfg.channels[0]
        stem = nn.Sequential(ConvNorm(3, first // 2, 3, 2, 1), gelu(cfg.gelu), ConvNorm(first // 2, first, 3, 2, 1))
        self.features = nn.ModuleList([stem])
        self.stage_ends: list[int] = []
        inputs = first
        for stage, (outputs, depth) in enumerate(zip(cfg.channels, cfg.depths, strict=True)):
            for index in range(depth):
                downsample = stage > 0 and index == 0
                # without fusion the last stage keeps the resolution of the embedding
                stride = 2 if downsample and (cfg.fuse or stage < 3) else 1
                squeeze = len(self.features) - 1 in cfg.squeeze
                self.features.append(
                    RepVitBlock(inputs, outputs, downsample=downsample, stride=stride, squeeze=squeeze, cfg=cfg)
                )
                inputs = outputs
            self.stage_ends.append(len(self.features) - 1)
        self.fuse = cfg.fuse
        out = cfg.out_channels
        if cfg.fuse:
            self.fuse_stage2 = nn.Conv2d(cfg.channels[2], out, 1, bias=False)
            self.fuse_stage3 = UpsampleFuse(cfg.channels[3], out, cfg.upsample)
        self.neck = nn.Sequential(
            nn.Conv2d(out if cfg.fuse else cfg.channels[3], out, 1, bias=False),
            norm2d(cfg.norm, out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            norm2d(cfg.norm, out),
        )

    def stages(self, x: Tensor) -> list[Tensor]:
        """Outputs of the stem and the four stages: strides 4, 4, 8, 16, 32 (16 without fusion)."""
        outputs = []
        for index, block in enumerate(self.features):
            x = block(x)
            if index == 0 or index in self.stage_ends:
                outputs.append(x)
        return outputs

    def with_intermediate(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The embeddings, and what an HQ decoder reads: stem, stage0, stage1 at strides 4, 4, 8."""
        *early, stage2, stage3 = self.stages(x)
        x = self.fuse_stage2(stage2) + self.fuse_stage3(stage3) if self.fuse else stage3
        return self.neck(x), tuple(early)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_intermediate(x)[0]
