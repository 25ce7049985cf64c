"""The PyTorch predictor of a semantic model: the reference that every artifact is compared with."""

from __future__ import annotations

import torch

from edgesam_deploy.model.cwsam.model import Cwsam
from edgesam_deploy.model.prompts import FloatArray
from edgesam_deploy.model.semantic import SemanticPredictor


class CwsamPredictor(SemanticPredictor):
    """A SemanticPredictor over a PyTorch model."""

    def __init__(self, model: Cwsam) -> None:
        self.model = model
        self.image_size, self.classes = model.image_size, model.classes

    @torch.no_grad()
    def infer(self, image: FloatArray) -> FloatArray:
        logits: FloatArray = self.model(torch.from_numpy(image).to(self.model.device)).cpu().numpy()
        return logits
