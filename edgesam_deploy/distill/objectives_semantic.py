"""Semantic training, as CWSAM's (arXiv 2401.02326): cross entropy of class logits, one picture at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesam_deploy.distill.data.items import IGNORED_LABEL, Batch
from edgesam_deploy.distill.recipe import Recipe
from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.cwsam.model import Cwsam


class SemanticObjective(nn.Module):
    """Cross entropy with a weight per class, over all pixels of the batch that have a label.

    The mean is divided by the sum of the weights, as for class indices; one of the reference's families has one-hot
    targets and divides by the number of pixels. Its load-balance loss is identically 0 and is left out.
    """

    weight: Tensor

    def __init__(self, student: Cwsam, recipe: Recipe) -> None:
        super().__init__()
        self.student = student
        self.recipe = recipe
        given = recipe.objective.class_weights or (1.0,) * student.classes
        if len(given) != student.classes:
            raise UsageError(f"objective.class_weights: {len(given)} numbers for {student.classes} classes")
        self.register_buffer("weight", torch.tensor(given), persistent=False)

    def forward(self, batch: Batch, update: int) -> tuple[dict[str, Tensor], float]:
        """The weighted loss and over what it is a mean."""
        assert batch.labels is not None
        logits = torch.cat([self.student(image[None]) for image in batch.images]).float()
        counted = batch.labels != IGNORED_LABEL
        count = self.weight[batch.labels[counted]].sum()
        loss = F.cross_entropy(logits, batch.labels, self.weight, ignore_index=IGNORED_LABEL, reduction="sum")
        return {"class": self.recipe.objective.cross_entropy * loss / count.clamp_min(1e-6)}, float(count)
