"""High-quality mask branch: one more token, and a mask feature that the encoder's early features sharpen.

HQ-SAM (arXiv 2306.01567) reads one feature of its transformer, EdgeSAM-DyT-HQ the first three of RepViT. What does not
depend on the prompt, most of the work, is ``hq_features``: once per picture.

    intermediate features ── compress ──(+)── hq_features ───────(+)── hq token's filter ── HQ mask
    image_embeddings ── embedding_encoder ─┘   upscaled ── embedding_maskfeature ─┘
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgesam_deploy.model.configs import MaskDecoderConfig
from edgesam_deploy.model.layers import Mlp, gelu, norm2d
from edgesam_deploy.model.mask_decoder import MaskDecoder


class HqAnswer(NamedTuple):
    """One mask per prompt: ``masks`` and the plain SAM mask (B, 1, S/4, S/4), predicted IoU (B, 1)."""

    masks: Tensor
    masks_sam: Tensor
    iou: Tensor


class HqMaskDecoder(MaskDecoder):
    """``channels``: of the intermediate features, three for an ``early`` branch, one for a ``late`` one."""

    def __init__(self, dim: int, cfg: MaskDecoderConfig, channels: tuple[int, ...]) -> None:
        super().__init__(dim, cfg)
        self.early = cfg.hq == "early"
        small = dim // 8
        self.hf_token = nn.Embedding(1, dim)
        self.hf_mlp = Mlp(dim, dim, small, 3)
        if self.early:
            layers = [nn.Conv2d(c, dim, 3, padding=1) for c in channels[:2]]
            layers.append(nn.ConvTranspose2d(channels[2], dim, 2, 2))  # type: ignore[arg-type] # at half the size
            self.compress_vit_feat: nn.Module = nn.ModuleList(
                nn.Sequential(layer, norm2d(cfg.norm, dim), gelu(cfg.gelu), nn.Conv2d(dim, small, 3, padding=1))
                for layer in layers
            )
        else:
            self.compress_vit_feat = _twice_up(channels[0], dim, small, cfg)
        self.embedding_encoder = _twice_up(dim, dim // 4, small, cfg)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(small, dim // 4, 3, padding=1), norm2d(cfg.norm, dim // 4), gelu(cfg.gelu),
            nn.Conv2d(dim // 4, small, 3, padding=1),
        )  # fmt: skip

    def own_tokens(self) -> Tensor:
        return torch.cat([super().own_tokens(), self.hf_token.weight])

    def hq_features(self, image_embeddings: Tensor, intermediate: Sequence[Tensor]) -> Tensor:
        """(1, C/8, S/4, S/4): all of the branch that does not depend on the prompt."""
        total: Tensor = self.embedding_encoder(image_embeddings)
        if not self.early:
            return total + self.compress_vit_feat(intermediate[0])  # type: ignore[no-any-return]
        assert isinstance(self.compress_vit_feat, nn.ModuleList)
        for compress, feature in zip(self.compress_vit_feat, intermediate, strict=True):
            total = total + compress(feature)
        return total

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        slot_bias: Tensor | None = None,
        hq_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As the plain decoder's, with the HQ mask as the fifth: (B, 5, S/4, S/4) and predicted IoU (B, 4)."""
        tokens, image = self.attended(
            image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, slot_bias
        )
        return self.head(tokens, image, hq_features)

    def head(self, tokens: Tensor, image: Tensor, hq_features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert hq_features is not None, "an HQ decoder needs hq_features"
        upscaled = self.upscaled(image)
        sharp = self.embedding_maskfeature(upscaled) + hq_features
        hyper = self.hf_mlp(tokens[:, 1 + self.num_mask_tokens])[:, None]
        fine = (hyper @ sharp.flatten(2)).unflatten(2, sharp.shape[-2:])
        masks = torch.cat([self.masks_of(tokens, upscaled), fine], dim=1)
        return masks, self.iou_prediction_head(tokens[:, 0])

    def answer(self, masks: Tensor, iou: Tensor, *, multimask: bool = False, hq_token_only: bool = False) -> HqAnswer:
        """The one mask that the model's own forward returns, from what ``predict_masks`` gave.

        ``early`` has no choice: the HQ mask, and the score of mask 0. ``late``: SAM's mask is mask 0, or with
        ``multimask`` the best of 1 to 3 by predicted IoU; the HQ logits are added to it, or stand alone with
        ``hq_token_only``.
        """
        fine, plain, score = masks[:, 4:], masks[:, :1], iou[:, :1]
        if self.early:
            return HqAnswer(fine, plain, score)
        if multimask:
            # a product with a one-hot row instead of a gather by a computed index, which compilers refuse
            best = (iou[:, 1:].argmax(1, keepdim=True) == torch.arange(3, device=iou.device)).to(masks.dtype)
            plain = (best[:, :, None, None] * masks[:, 1:4]).sum(1, keepdim=True)
            score = (best * iou[:, 1:]).sum(1, keepdim=True)
        return HqAnswer(fine if hq_token_only else plain + fine, plain, score)


def _twice_up(inputs: int, hidden: int, outputs: int, cfg: MaskDecoderConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, hidden, 2, 2), norm2d(cfg.norm, hidden), gelu(cfg.gelu),
        nn.ConvTranspose2d(hidden, outputs, 2, 2),
    )  # fmt: skip
