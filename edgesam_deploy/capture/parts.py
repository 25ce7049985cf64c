"""A model's parts as they are deployed: modules with exactly the inputs and outputs of the contract.

They hold no arithmetic of their own beyond what the contract adds (slots, flags, normalisation inside); the networks
are the model's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesam_deploy.contract import Interface, SegmenterInterface
from edgesam_deploy.model.mask_decoder_hq import HqMaskDecoder
from edgesam_deploy.model.prompt_encoder import PromptEncoder, empty_slot_bias
from edgesam_deploy.model.prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, EMPTY
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.model.transforms import PIXEL_MEAN, PIXEL_STD


class ImageEncoderPart(nn.Module):
    """image (1, 3, S, S), or uint8 (1, S, S, 3) and image_size (2,), to the interface's encoder outputs."""

    def __init__(self, model: Sam, interface: Interface) -> None:
        super().__init__()
        self.image_encoder = model.image_encoder
        self.interface = interface
        if interface.hq != "none" and not interface.foreign_hq:
            self.mask_decoder = model.mask_decoder  # for its work that does not depend on the prompt
        if interface.embed_preprocess:
            self.register_buffer("mean", model.pixel_mean.clone())
            self.register_buffer("std", model.pixel_std.clone())
            self.register_buffer("pixels", torch.arange(interface.image_size, dtype=torch.float32))

    mean: Tensor
    std: Tensor
    pixels: Tensor

    def forward(self, image: Tensor, image_size: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        if image_size is not None:
            # zero after normalising: a padded mean colour is not zero, 124 is not 123.675
            inside = (self.pixels[:, None] < image_size[:1]).float() * (self.pixels < image_size[1:]).float()
            image = (planes(image) - self.mean) / self.std * inside
        if self.interface.hq == "none":
            return self.image_encoder(image)  # type: ignore[no-any-return]
        embeddings, intermediate = self.image_encoder.with_intermediate(image)
        if not self.interface.foreign_hq:
            assert isinstance(self.mask_decoder, HqMaskDecoder)
            return embeddings, self.mask_decoder.hq_features(embeddings, intermediate)
        if self.interface.io == "sam":  # its exporter stacks features of shape (1, H, W, C)
            return embeddings, intermediate[0].permute(0, 2, 3, 1)[None]
        return embeddings, *intermediate


class MaskDecoderPart(nn.Module):
    """Prompt encoder and mask decoder in one: slots to the interface's decoder outputs."""

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
        boxes: Tensor | None = None,
        point_valid: Tensor | None = None,
        boxes_valid: Tensor | None = None,
        hq_features: Tensor | None = None,
        interm_embeddings: Tensor | None = None,
        interm_embeddings_0: Tensor | None = None,
        interm_embeddings_1: Tensor | None = None,
        interm_embeddings_2: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Each layout gives its own subset. The names stand here one by one: torch.export knows no ``**inputs``."""
        interface = self.interface
        coords, labels = point_coords, point_labels
        if boxes is not None and point_valid is not None and boxes_valid is not None:
            coords, labels = _with_box(coords, labels, boxes, point_valid, boxes_valid)
        if interm_embeddings is not None:  # entry 0 of (n, 1, H, W, C) is all that the model reads
            hq_features = self._hq_features(image_embeddings, interm_embeddings[0].permute(0, 3, 1, 2))
        elif interm_embeddings_0 is not None:
            early = interm_embeddings_0, interm_embeddings_1, interm_embeddings_2
            hq_features = self._hq_features(image_embeddings, *early)
        prompt = _prompt(self.prompt_encoder, interface, coords, labels, mask_input, has_mask_input)
        masks, scores, *sam = self._decode(image_embeddings, prompt, hq_features)
        return self._laid_out(masks, scores, *sam)

    def _laid_out(self, masks: Tensor, scores: Tensor, *sam: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the interface's order."""
        interface = self.interface
        if interface.scores == "stability":
            scores = stability_score(masks)
        if interface.io in ("edgesam", "edgesam-npu"):
            return scores, masks
        if interface.io == "edgesam-dyt":
            size = (interface.image_size, interface.image_size)
            return scores, F.interpolate(masks, size, mode="bilinear", align_corners=False), masks
        return (masks, *sam, scores) if interface.io == "contract" else (masks, scores)

    def _hq_features(self, image_embeddings: Tensor, *intermediate: Tensor | None) -> Tensor:
        assert isinstance(self.mask_decoder, HqMaskDecoder)
        return self.mask_decoder.hq_features(image_embeddings, [f for f in intermediate if f is not None])

    def _decode(self, embeddings: Tensor, prompt: tuple[Any, ...], hq_features: Tensor | None) -> tuple[Tensor, ...]:
        decoder = self.mask_decoder
        if not isinstance(decoder, HqMaskDecoder):
            return decoder.predict_masks(embeddings, *prompt)
        image_pe, sparse, dense, bias = prompt
        return self._answer(decoder.predict_masks(embeddings, image_pe, sparse, dense, bias, hq_features))

    def _answer(self, predicted: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """The one mask of an HQ decoder."""
        (masks, iou), decoder, interface = predicted, self.mask_decoder, self.interface
        assert isinstance(decoder, HqMaskDecoder)
        answer = decoder.answer(masks, iou, multimask=interface.multimask, hq_token_only=interface.hq_token_only)
        return answer.masks, answer.iou, answer.masks_sam


def _with_box(
    coords: Tensor, labels: Tensor, boxes: Tensor, point_valid: Tensor, boxes_valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Points and box as slots; those that are not valid become empty ones, whose exclusion is exact.

    The reference drops rows by a boolean index instead, whose result has no static shape.
    """
    point, box = point_valid.to(labels.dtype), boxes_valid.to(labels.dtype)
    corners = torch.tensor([[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]], dtype=labels.dtype, device=labels.device)
    labels = torch.cat([point * labels + (1 - point) * EMPTY, box * corners + (1 - box) * EMPTY], dim=1)
    return torch.cat([coords, boxes.reshape(1, 2, 2)], dim=1), labels


def _prompt(
    encoder: PromptEncoder,
    interface: Interface,
    coords: Tensor,
    labels: Tensor,
    mask_input: Tensor | None,
    has_mask_input: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """image_pe, sparse and dense embeddings, and the bias of the slots, as ``MaskDecoder.attended`` takes them."""
    # (1, C, 1, 1): broadcast, not expanded, so that the image side of the first layer runs once for all prompts
    dense: Tensor = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    if mask_input is not None and has_mask_input is not None:
        has = has_mask_input[:, None, None, None]
        dense = has * encoder.embed_masks(mask_input) + (1 - has) * dense
    bias = empty_slot_bias(labels) if interface.empty_slots else None
    return encoder.get_dense_pe(), encoder.embed_slots(coords, labels), dense, bias


class PromptTransformerPart(nn.Module):
    """The first part of a split decoder: prompt encoder and transformer, slots to ``hs`` and ``src``."""

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
        prompt = _prompt(self.prompt_encoder, self.interface, point_coords, point_labels, mask_input, has_mask_input)
        return self.mask_decoder.attended(image_embeddings, *prompt)


class MaskHeadPart(MaskDecoderPart):
    """The second part of a split decoder: ``hs`` and ``src`` to the interface's decoder outputs."""

    def forward(  # type: ignore[override]
        self, hs: Tensor, src: Tensor, hq_features: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        decoder = self.mask_decoder
        if isinstance(decoder, HqMaskDecoder):
            return self._laid_out(*self._answer(decoder.head(hs, src, hq_features)))
        return self._laid_out(*decoder.head(hs, src))


class SegmenterPart(nn.Module):
    """image (1, 3, S, S), or uint8 (1, S, S, 3), to class logits (1, K, S, S), or the class map (1, S, S)."""

    def __init__(self, model: nn.Module, interface: SegmenterInterface) -> None:
        super().__init__()
        self.model = model
        self.interface = interface
        if interface.embed_preprocess:
            for name, values in (("mean", PIXEL_MEAN), ("std", PIXEL_STD)):
                self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    mean: Tensor
    std: Tensor

    def forward(self, image: Tensor) -> Tensor:
        if self.interface.embed_preprocess:
            image = (planes(image) - self.mean) / self.std
        logits: Tensor = self.model(image)
        return logits.argmax(1).to(torch.int32) if self.interface.argmax else logits


def planes(image: Tensor) -> Tensor:
    """Pixels uint8 (1, H, W, 3) as float planes (1, 3, H, W); cast first, since TensorRT transposes no uint8."""
    return image.float().permute(0, 3, 1, 2)


def stability_score(masks: Tensor, offset: float = 1.0) -> Tensor:
    """count(logit > offset) / count(logit > -offset) over the last two axes; 0 where the denominator is 0."""
    inner = (masks > offset).float().sum((-1, -2))
    outer = (masks > -offset).float().sum((-1, -2))
    return inner / outer.clamp(min=1)
