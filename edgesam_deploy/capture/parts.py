"""A model's parts as they are deployed: modules with exactly the inputs and outputs of the contract.

They hold no arithmetic of their own beyond what the contract adds (slots, flags, normalisation inside); the networks
are the model's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgesam_deploy.contract import Interface
from edgesam_deploy.model.prompt_encoder import empty_slot_bias
from edgesam_deploy.model.sam import Sam


class ImageEncoderPart(nn.Module):
    """image (1, 3, S, S), or uint8 (1, S, S, 3) and image_size (2,), to image_embeddings."""

    def __init__(self, model: Sam, interface: Interface) -> None:
        super().__init__()
        self.image_encoder = model.image_encoder
        self.embed_preprocess = interface.embed_preprocess
        if interface.embed_preprocess:
            self.register_buffer("mean", model.pixel_mean.clone())
            self.register_buffer("std", model.pixel_std.clone())
            self.register_buffer("pixels", torch.arange(interface.image_size, dtype=torch.float32))

    mean: Tensor
    std: Tensor
    pixels: Tensor

    def forward(self, image: Tensor, image_size: Tensor | None = None) -> Tensor:
        if image_size is not None:
            # zero after normalising: a padded mean colour is not zero, 124 is not 123.675
            rows = (self.pixels < image_size[0])[:, None]
            columns = (self.pixels < image_size[1])[None, :]
            image = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std * (rows & columns).float()
        return self.image_encoder(image)  # type: ignore[no-any-return]


class MaskDecoderPart(nn.Module):
    """Prompt encoder and mask decoder in one: slots to logits (B, 4, S/4, S/4) and scores (B, 4)."""

    def __init__(self, model: Sam, interface: Interface) -> None:
        super().__init__()
        self.prompt_encoder = model.prompt_encoder
        self.mask_decoder = model.mask_decoder
        self.interface = interface

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        encoder = self.prompt_encoder
        # (1, C, 1, 1): broadcast, not expanded, so that the image side of the first layer runs once for all prompts
        dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        if mask_input is not None and has_mask_input is not None:
            has = has_mask_input[:, None, None, None]
            dense = has * encoder.embed_masks(mask_input) + (1 - has) * dense
        masks, scores = self.mask_decoder.predict_masks(
            image_embeddings,
            encoder.get_dense_pe(),
            encoder.embed_slots(point_coords, point_labels),
            dense,
            empty_slot_bias(point_labels) if self.interface.empty_slots else None,
        )
        if self.interface.scores == "stability":
            scores = stability_score(masks)
        return (scores, masks) if self.interface.io == "edgesam" else (masks, scores)


def stability_score(masks: Tensor, offset: float = 1.0) -> Tensor:
    """count(logit > offset) / count(logit > -offset) over the last two axes; 0 where the denominator is 0."""
    inner = (masks > offset).float().sum((-1, -2))
    outer = (masks > -offset).float().sum((-1, -2))
    return inner / outer.clamp(min=1)
