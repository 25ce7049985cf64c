"""The PyTorch predictor: the reference that every artifact is compared with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesam_deploy.errors import PromptError
from edgesam_deploy.model.base_predictor import PromptPredictor
from edgesam_deploy.model.prompt_encoder import empty_slot_bias
from edgesam_deploy.model.prompts import EMPTY, FloatArray, Slots
from edgesam_deploy.model.sam import Sam


class SamPredictor(PromptPredictor):
    """SAM's predictor over a PyTorch model (``features``: image embeddings (1, C, S/16, S/16)).

    Departures from the reference, each on purpose: labels 2 and 3 given as points are box corners here (there, bare
    positions); a stability score whose denominator is 0 is 0 (there, NaN); no padding point is appended to a prompt
    whose points hold box corners.
    """

    features: Tensor | None
    _image_pe: Tensor

    def __init__(self, model: Sam) -> None:
        self.model = model
        self.image_size = model.image_size
        self.mask_threshold = model.mask_threshold

    @torch.no_grad()
    def encode(self, image: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(self.preprocess(image)).to(self.model.device)
        if self.model.promptable:
            self._image_pe = self.model.prompt_encoder.get_dense_pe()  # once per picture, not per prompt
        return self.model.image_encoder(pixels)  # type: ignore[no-any-return]

    @torch.no_grad()
    def decode(self, prompts: Slots, mask_input: FloatArray | None) -> tuple[FloatArray, FloatArray]:
        model = self.model
        if self.features is None:
            raise PromptError("no picture is set; call set_image first")
        coords = torch.from_numpy(prompts.coords).to(model.device)
        labels = torch.from_numpy(prompts.labels).to(model.device)
        dense = model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        if mask_input is not None:
            dense = model.prompt_encoder.embed_masks(torch.from_numpy(mask_input).to(model.device))
        has_empty = bool((prompts.labels == EMPTY).any())
        low_res, iou = model.mask_decoder.predict_masks(
            self.features,
            self._image_pe,
            model.prompt_encoder.embed_slots(coords, labels),
            dense,
            empty_slot_bias(labels) if has_empty else None,
        )
        return low_res.cpu().numpy(), iou.cpu().numpy()

    @torch.no_grad()
    def upscale(self, low_res: FloatArray) -> FloatArray:
        masks = torch.from_numpy(low_res).reshape(-1, 1, *low_res.shape[-2:])
        upscaled = self.model.postprocess_masks(masks, self.input_size, self.original_size)
        return upscaled.reshape(*low_res.shape[:-2], *self.original_size).numpy()
