"""The HQ stage: an HQ branch learns exact masks, and beside them the masks of an HQ teacher (arXiv 2306.01567)."""

from __future__ import annotations

import torch
from torch import Tensor

from edgesam_deploy.distill.data.items import Batch
from edgesam_deploy.distill.losses import mask_target
from edgesam_deploy.distill.objectives import Losses, Objective
from edgesam_deploy.distill.prompts import Prompts, hq_prompts
from edgesam_deploy.distill.recipe import Recipe
from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.mask_decoder_hq import HqMaskDecoder
from edgesam_deploy.model.sam import Sam


class HqObjective(Objective):
    """The HQ logits against the exact mask, and with a teacher, both at ``temperature`` T, against the teacher's times
    T^2. Losses of the second kind are called ``taught ...``; the weights are the same.
    """

    def __init__(self, student: Sam, recipe: Recipe, teacher: Sam | None = None) -> None:
        super().__init__(student, recipe)
        for model in (student, *([teacher] if teacher else [])):
            if not model.hq:
                raise UsageError(f"{model.name}: has no high-quality branch; take edge_sam_dyt_hq or a sam_hq model")
        self._teacher = (teacher,)  # in a tuple, so that it does not become a sub-module

    def compute(self, batch: Batch, update: int) -> Losses:
        assert batch.masks is not None
        options, (teacher,) = self.weights, self._teacher
        fewer = "fewer_points" in self.faults
        prompts = hq_prompts(batch, self.recipe.train.seed, update, fewer=fewer)
        ours = fine_masks(self.student, batch, prompts)
        side = ours.shape[-1]
        valid = batch.valid(side)[batch.owner]
        exact = batch.masks[:, None].float() if options.point_rend else (batch.masks_at(side) > 0.5).float()[:, None]
        terms = self.mask_terms(ours, exact, valid, batch, update)
        if teacher is not None:
            with torch.no_grad():
                theirs = fine_masks(teacher, batch, prompts)
            heat = options.temperature
            target = mask_target(theirs, temperature=heat, soft=options.soft_targets)
            taught = self.mask_terms(ours / heat, target, valid, batch, update)
            terms |= {f"taught {name}": heat**2 * loss for name, loss in taught.items()}
        return Losses(terms, len(batch.boxes))


def fine_masks(model: Sam, batch: Batch, prompts: Prompts) -> Tensor:
    """The HQ branch's own logits (N, 1, S/4, S/4) of a batch's prompts."""
    decoder = model.mask_decoder
    assert isinstance(decoder, HqMaskDecoder)
    embeddings, intermediate = model.image_encoder.with_intermediate(batch.images)
    features = decoder.hq_features(embeddings, intermediate)
    points = None if prompts.points is None or prompts.labels is None else (prompts.points, prompts.labels)
    sparse, dense = model.prompt_encoder(points, prompts.boxes)
    pe = model.prompt_encoder.get_dense_pe()
    masks, _ = decoder.predict_masks(embeddings[batch.owner], pe, sparse, dense, None, features[batch.owner])
    return masks[:, 4:].float()
