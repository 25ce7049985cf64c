"""A semantic model: one picture to the logits of its classes, without prompts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.cwsam.configs import CwsamConfig
from edgesam_deploy.model.cwsam.decoder import CwsamDecoder
from edgesam_deploy.model.cwsam.encoder import CwsamEncoder
from edgesam_deploy.model.prompt_encoder import PositionEmbeddingRandom
from edgesam_deploy.model.sam import Weights


class ClassWeights(nn.Module):
    """The training loss's weight per class: in checkpoints, without effect."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(classes))


class Cwsam(nn.Module):
    """``image_encoder`` and ``mask_decoder`` of one checkpoint.

    The batch is 1, always: experts that choose tokens would choose among those of all pictures, so that a picture's
    classes would depend on its neighbours, and the dense reference is defined for one picture only.
    """

    promptable = False

    def __init__(self, config: CwsamConfig, name: str = "cwsam") -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.weights = Weights("seeded")
        self.image_encoder = CwsamEncoder(config.image_encoder, config.image_size, config.embed_dim)
        self.mask_decoder = CwsamDecoder(config.embed_dim, config.mask_decoder, config.classes)
        if config.class_weights:
            self.criterionBCE = ClassWeights(config.classes)
        self.pe_layer = PositionEmbeddingRandom(config.embed_dim // 2)
        self.no_mask_embed = nn.Embedding(1, config.embed_dim)

    @property
    def image_size(self) -> int:
        """Side of the square picture in pixels."""
        return self.config.image_size

    @property
    def classes(self) -> int:
        return self.config.classes

    @property
    def device(self) -> torch.device:
        return self.no_mask_embed.weight.device

    def in_own_form(self) -> None:
        """None: there is no other form of it to ask for (as ``Sam.in_own_form``)."""
        return

    def features(self, image: Tensor) -> Tensor:
        """(1, 3, S, S), normalised -> the encoder's (1, embed_dim, S/16, S/16). Raises UsageError for another shape."""
        expected = (1, 3, self.image_size, self.image_size)
        if tuple(image.shape) != expected:
            raise UsageError(
                f"{self.name}: the picture is {tuple(image.shape)}, must be {expected}: one at a time, resized to the "
                "model's square (classes may depend on the whole batch)"
            )
        return self.image_encoder(image)  # type: ignore[no-any-return]

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, S, S) RGB, resized without keeping the aspect and normalised -> logits (1, classes, S, S)."""
        features = self.features(image)
        source = features + self.no_mask_embed.weight.reshape(1, -1, 1, 1)
        logits = self.mask_decoder(source, self.pe_layer(*features.shape[2:])[None])
        size = (self.image_size, self.image_size)
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)
