"""SAM's mask decoder: image embeddings and prompt tokens to mask logits and predicted IoU."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn

from edgesam_deploy.errors import PromptError
from edgesam_deploy.model.configs import MaskDecoderConfig
from edgesam_deploy.model.layers import Mlp, gelu, norm2d
from edgesam_deploy.model.transformer import TwoWayTransformer


def multimask_slice(count: int) -> slice:
    """Which of the four masks ``num_multimask_outputs`` means. Raises PromptError for other than 1, 3, 4."""
    if count not in (1, 3, 4):
        raise PromptError(f"num_multimask_outputs={count}: must be 1, 3 or 4")
    return {4: slice(None), 3: slice(1, None), 1: slice(0, 1)}[count]


class MaskDecoder(nn.Module):
    """Token 0 of the four masks is the single-mask answer, 1 to 3 are the multi-mask ones."""

    def __init__(self, dim: int, cfg: MaskDecoderConfig) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(dim, cfg)
        self.num_mask_tokens = cfg.mask_tokens
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(cfg.mask_tokens, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, 2), norm2d(cfg.norm, dim // 4), gelu(cfg.gelu),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, 2), gelu(cfg.gelu),
        )  # fmt: skip
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp(dim, dim, dim // 8, 3) for _ in range(cfg.mask_tokens))
        self.iou_prediction_head = Mlp(dim, 256, cfg.mask_tokens, 3)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        num_multimask_outputs: int = 3,
    ) -> tuple[Tensor, Tensor]:
        """Masks (B, M, S/4, S/4) and predicted IoU (B, M), M = ``num_multimask_outputs``: 4 all, 3 the multi-mask
        tokens, 1 the single-mask token. Raises PromptError for another M. Arguments as ``predict_masks``.
        """
        chosen = multimask_slice(num_multimask_outputs)
        masks, iou = self.predict_masks(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        return masks[:, chosen], iou[:, chosen]

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        slot_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All masks (B, 4, S/4, S/4) as logits and their predicted IoU (B, 4).

        image_embeddings (1 or B, C, h, w) and image_pe (1, C, h, w); sparse (B, N, C); dense (1 or B, C, h, w) or
        anything that broadcasts to it; slot_bias (B, N) is added to the attention scores where the N prompt tokens are
        keys (``empty_slot_bias``).
        """
        tokens, image = self.attended(
            image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, slot_bias
        )
        return self.head(tokens, image)

    def own_tokens(self) -> Tensor:
        """The decoder's learned tokens (T, C), which stand before the prompt's: IoU, then one per mask."""
        return torch.cat([self.iou_token.weight, self.mask_tokens.weight])

    def attended(
        self, image_embeddings: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, slot_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """All tokens (B, T + N, C) and the image side (B, h w, C), row by row, after the transformer."""
        batch = sparse.shape[0]
        own = self.own_tokens()
        tokens = torch.cat([own.expand(batch, -1, -1), sparse], dim=1)
        key_bias = None
        if slot_bias is not None:
            always = slot_bias.new_zeros(batch, own.shape[0])
            key_bias = torch.cat([always, slot_bias], dim=1)[:, None, None, :]
        source = image_embeddings + dense
        attended: tuple[Tensor, Tensor] = self.transformer(
            tokens, source.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2), key_bias
        )
        return attended

    def head(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Masks and predicted IoU, as ``predict_masks``, of what ``attended`` gave."""
        return self.masks_of(tokens, self.upscaled(image)), self.iou_prediction_head(tokens[:, 0])

    def upscaled(self, image: Tensor) -> Tensor:
        """The image side (B, h w, C) of the transformer, of a square map, as (B, C/8, S/4, S/4)."""
        side = isqrt(image.shape[1])
        square = image.transpose(1, 2).unflatten(2, (side, side))  # type: ignore[no-untyped-call]
        return self.output_upscaling(square)  # type: ignore[no-any-return]

    def masks_of(self, tokens: Tensor, upscaled: Tensor) -> Tensor:
        """Logits (B, M, h, w): each mask token's hypernetwork makes a filter over the channels of ``upscaled``."""
        mask_tokens = tokens[:, 1 : 1 + self.num_mask_tokens]
        hyper = torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
        masks: Tensor = (hyper @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])  # type: ignore[no-untyped-call]
        return masks
