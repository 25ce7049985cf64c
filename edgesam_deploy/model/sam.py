"""A promptable model: image encoder, prompt encoder and mask decoder under the names that checkpoints use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesam_deploy.model.configs import (
    MODELS,
    EncoderConfig,
    RepVitConfig,
    SamConfig,
    TinyVitConfig,
    intermediate_channels,
)
from edgesam_deploy.model.mask_decoder import MaskDecoder, multimask_slice
from edgesam_deploy.model.mask_decoder_hq import HqMaskDecoder
from edgesam_deploy.model.prompt_encoder import PromptEncoder
from edgesam_deploy.model.repvit import RepVit
from edgesam_deploy.model.tiny_vit import TinyVit
from edgesam_deploy.model.transforms import PIXEL_MEAN, PIXEL_STD
from edgesam_deploy.model.vit import Vit


@dataclass(frozen=True)
class Weights:
    """Where a model's numbers come from; travels into every manifest, report and model card."""

    source: Literal["checkpoint", "seeded"]
    checkpoint: str | None = None  # file name, not the path: artifacts must not depend on where a file lay
    sha256: str | None = None
    seed: int | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.source == "seeded":
            return f"random weights, seed {self.seed}: its masks mean nothing"
        return f"{self.checkpoint} (sha256 {(self.sha256 or '')[:12]})"


def image_encoder(cfg: EncoderConfig, image_size: int) -> RepVit | TinyVit | Vit:
    """The encoder of a configuration: pictures to embeddings, ``with_intermediate`` also to what HQ decoders read."""
    if isinstance(cfg, RepVitConfig):
        return RepVit(cfg)
    return TinyVit(cfg, image_size) if isinstance(cfg, TinyVitConfig) else Vit(cfg, image_size)


class Sam(nn.Module):
    """``image_encoder``, ``prompt_encoder`` and ``mask_decoder`` of one checkpoint."""

    mask_threshold: float = 0.0
    image_format: str = "RGB"
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: SamConfig, name: str = "edge_sam") -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.weights = Weights("seeded")
        self.image_encoder = image_encoder(config.image_encoder, config.image_size)
        decoder = config.mask_decoder
        if decoder is not None:
            self.prompt_encoder = PromptEncoder(config.embed_dim, config.image_size)
            self.mask_decoder = MaskDecoder(config.embed_dim, decoder)
            if decoder.hq != "none":
                channels = intermediate_channels(config.image_encoder)
                self.mask_decoder = HqMaskDecoder(config.embed_dim, decoder, channels)
        self.make_constants()

    def make_constants(self) -> None:
        """Mean and standard deviation per channel, 0..255; never in a checkpoint."""
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            constant = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    @property
    def promptable(self) -> bool:
        """False for an image encoder alone."""
        return self.config.mask_decoder is not None

    @property
    def hq(self) -> bool:
        """Whether the decoder has the high-quality branch."""
        return self.config.mask_decoder is not None and self.config.mask_decoder.hq != "none"

    def encode(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(1, 3, S, S) normalised to what every prompt on the picture shares: image_embeddings, in HQ models also
        hq_features.
        """
        if not self.hq:
            return (self.image_encoder(pixels),)
        assert isinstance(self.mask_decoder, HqMaskDecoder)
        embeddings, intermediate = self.image_encoder.with_intermediate(pixels)
        return embeddings, self.mask_decoder.hq_features(embeddings, intermediate)

    def decode(
        self,
        features: Sequence[Tensor],
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        slot_bias: Tensor | None = None,
        *,
        multimask: bool = False,
        hq_token_only: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (B, M, S/4, S/4), predicted IoU (B, M), and in HQ models, where M is 1, the plain SAM logits.

        ``features`` as ``encode`` gave them, the rest as ``MaskDecoder.predict_masks``; the two choices are HQ-SAM's.
        """
        if not self.hq:
            masks, iou = self.mask_decoder.predict_masks(features[0], image_pe, sparse, dense, slot_bias)
            return masks, iou, None
        decoder = self.mask_decoder
        assert isinstance(decoder, HqMaskDecoder)
        masks, iou = decoder.predict_masks(features[0], image_pe, sparse, dense, slot_bias, features[1])
        answer = decoder.answer(masks, iou, multimask=multimask, hq_token_only=hq_token_only)
        return answer.masks, answer.iou, answer.masks_sam

    def in_own_form(self) -> Sam | None:
        """The same weights with the neck and the GELU that the name was trained with; None if that is this model."""
        own = MODELS[self.name]
        assert isinstance(own, SamConfig)
        encoder, trained = replace(self.config.image_encoder, gelu=own.image_encoder.gelu), own.image_encoder
        if isinstance(encoder, RepVitConfig) and isinstance(trained, RepVitConfig):
            encoder = replace(encoder, upsample=trained.upsample)
        config = replace(self.config, image_encoder=encoder)
        if self.config.mask_decoder is not None and own.mask_decoder is not None:
            config = replace(config, mask_decoder=replace(self.config.mask_decoder, gelu=own.mask_decoder.gelu))
        if config == self.config:
            return None
        model = Sam(config, self.name).eval()
        model.load_state_dict(self.state_dict())
        model.weights = self.weights
        return model

    @property
    def image_size(self) -> int:
        """Side of the square model frame in pixels."""
        return self.config.image_size

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess(self, x: Tensor) -> Tensor:
        """(3, h, w) RGB 0..255, long side S -> (1, 3, S, S): normalised, then zero-padded right and bottom."""
        x = (x - self.pixel_mean) / self.pixel_std
        height, width = x.shape[-2:]
        return F.pad(x, (0, self.image_size - width, 0, self.image_size - height))[None]

    def postprocess_masks(self, masks: Tensor, input_size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
        """Low-resolution logits (B, M, h, w) -> (B, M, H, W) of the original picture, bilinear, no antialiasing."""
        size = (self.image_size, self.image_size)
        masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)
        masks = masks[..., : input_size[0], : input_size[1]]
        return F.interpolate(masks, original_size, mode="bilinear", align_corners=False)

    @torch.no_grad()
    def forward(
        self, batched_input: Sequence[Mapping[str, Any]], num_multimask_outputs: int = 1
    ) -> list[dict[str, Tensor]]:
        """SAM's list-of-dicts call. Per image: ``image`` (3, h, w) resized so that the long side is S, RGB 0..255;
        ``original_size`` (H, W); optional ``point_coords`` (B, N, 2) in the model frame with ``point_labels`` (B, N),
        ``boxes`` (B, 4), ``mask_inputs`` (B, 1, S/4, S/4).

        Returns per image ``masks`` (B, M, H, W) bool, ``iou_predictions`` (B, M), ``low_res_logits`` (B, M, S/4, S/4);
        HQ models give M = 1 and, beside it, ``low_res_logits_sam``. M is 1, 3 or 4, else PromptError.
        """
        chosen = multimask_slice(num_multimask_outputs)
        results = []
        for record in batched_input:
            features = self.encode(self.preprocess(record["image"]))
            points = (record["point_coords"], record["point_labels"]) if "point_coords" in record else None
            sparse, dense = self.prompt_encoder(points, record.get("boxes"), record.get("mask_inputs"))
            low_res, iou, sam = self.decode(features, self.prompt_encoder.get_dense_pe(), sparse, dense)
            if sam is None:
                low_res, iou = low_res[:, chosen], iou[:, chosen]
            masks = self.postprocess_masks(low_res, record["image"].shape[-2:], record["original_size"])
            result = {"masks": masks > self.mask_threshold, "iou_predictions": iou, "low_res_logits": low_res}
            results.append(result if sam is None else {**result, "low_res_logits_sam": sam})
        return results
