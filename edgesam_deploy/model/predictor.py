"""The PyTorch predictor: the reference that every artifact is compared with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesam_deploy.errors import PromptError
from edgesam_deploy.model.base_predictor import Answers, PromptPredictor
from edgesam_deploy.model.prompt_encoder import empty_slot_bias
from edgesam_deploy.model.prompts import EMPTY, FloatArray, Slots
from edgesam_deploy.model.sam import Sam


class SamPredictor(PromptPredictor):
    """SAM's predictor over a PyTorch model (``features``: image embeddings (1, C, S/16, S/16); in HQ models, which
    answer with one mask, a pair with hq_features (1, C/8, S/4, S/4)).

    multimask, hq_token_only: HQ-SAM's two choices. Its plain mask is the best of masks 1 to 3 instead of mask 0; the
    HQ logits stand alone instead of being added to it.

    Departures from the reference, each on purpose: labels 2 and 3 given as points are box corners here (there, bare
    positions); a stability score whose denominator is 0 is 0 (there, NaN); no padding point is appended to a prompt
    whose points hold box corners.
    """

    features: Tensor | tuple[Tensor, ...] | None
    _image_pe: Tensor

    def __init__(self, model: Sam, *, multimask: bool = False, hq_token_only: bool = False) -> None:
        self.model = model
        self.choices = {"multimask": multimask, "hq_token_only": hq_token_only}
        self.image_size = model.image_size
        self.mask_threshold = model.mask_threshold

    @torch.no_grad()
    def encode(self, image: NDArray[np.uint8]) -> Tensor | tuple[Tensor, ...]:
        pixels = torch.from_numpy(self.preprocess(image)).to(self.model.device)
        if self.model.promptable:
            self._image_pe = self.model.prompt_encoder.get_dense_pe()  # once per picture, not per prompt
        features = self.model.encode(pixels)
        return features if self.model.hq else features[0]

    @torch.no_grad()
    def decode(self, prompts: Slots, mask_input: FloatArray | None) -> Answers:
        model = self.model
        if self.features is None:
            raise PromptError("no picture is set; call set_image first")
        coords = torch.from_numpy(prompts.coords).to(model.device)
        labels = torch.from_numpy(prompts.labels).to(model.device)
        dense = model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        if mask_input is not None:
            dense = model.prompt_encoder.embed_masks(torch.from_numpy(mask_input).to(model.device))
        has_empty = bool((prompts.labels == EMPTY).any())
        low_res, iou, sam = model.decode(
            self.features if isinstance(self.features, tuple) else (self.features,),
            self._image_pe,
            model.prompt_encoder.embed_slots(coords, labels),
            dense,
            empty_slot_bias(labels) if has_empty else None,
            **self.choices,
        )
        return Answers(low_res.cpu().numpy(), iou.cpu().numpy(), None if sam is None else sam.cpu().numpy())

    @torch.no_grad()
    def upscale(self, low_res: FloatArray) -> FloatArray:
        masks = torch.from_numpy(low_res).reshape(-1, 1, *low_res.shape[-2:])
        upscaled = self.model.postprocess_masks(masks, self.input_size, self.original_size)
        return upscaled.reshape(*low_res.shape[:-2], *self.original_size).numpy()
