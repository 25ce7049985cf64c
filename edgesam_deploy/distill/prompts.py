"""Prompts in the loop: where the student's mask differs from what it should be, the next point is put.

As EdgeSAM does (arXiv 2312.06660, section 3.3): boxes or points by one coin per batch, then for each further iteration
a point drawn from the pixels where the two masks differ: foreground where the student missed, background where it
added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from edgesam_deploy.distill.data.items import Batch
from edgesam_deploy.distill.randomness import coin, generator, uniform_rows
from edgesam_deploy.errors import DataError
from edgesam_deploy.model.prompts import BACKGROUND, FOREGROUND, IGNORED

PromptKind = Literal["box", "point"]
HQ_POINTS = 5
FEWEST = 10  # wrong pixels per point, below which no point is asked for


@dataclass(frozen=True)
class Prompts:
    """points (N, P, 2) in model-frame pixels with labels (N, P), or None; boxes (N, 4), or None."""

    points: Tensor | None
    labels: Tensor | None
    boxes: Tensor | None

    @property
    def kind(self) -> PromptKind:
        return "point" if self.boxes is None else "box"

    def with_points(self, points: Tensor, labels: Tensor) -> Prompts:
        """These and more points behind the ones that are there; a box stays."""
        if self.points is None or self.labels is None:
            return replace(self, points=points, labels=labels)
        return replace(self, points=torch.cat([self.points, points], 1), labels=torch.cat([self.labels, labels], 1))


def first_prompts(
    batch: Batch, kinds: tuple[PromptKind, ...], seed: int, update: int, *, from_masks: bool = False
) -> Prompts:
    """The prompts of the first iteration: of one kind for the whole batch, chosen by a coin where both are allowed, so
    that all ranks do the same work. ``from_masks``: the point is a random pixel of the exact mask
    (PROMPT_MASK_TO_POINT); data sets without points need it.
    """
    kind = kinds[0] if len(kinds) == 1 else ("box" if coin("prompt kind", seed, update) else "point")
    if kind == "box":
        return Prompts(None, None, batch.boxes)
    if from_masks:
        points, labels = points_in_masks(batch, seed, update)
        return Prompts(points, labels, None)
    if batch.points is None:
        raise DataError("this data set has no points; set objective.points_from_masks, or prompt with boxes only")
    labels = torch.full(batch.points.shape[:2], FOREGROUND, device=batch.points.device)
    return Prompts(batch.points, labels, None)


def points_in_masks(batch: Batch, seed: int, update: int) -> tuple[Tensor, Tensor]:
    """One random pixel (N, 1, 2) of each exact mask, label (N, 1) foreground; ignored where the mask is empty."""
    assert batch.masks is not None, "points from masks need items with masks"
    noise = uniform_rows("point in mask", seed, update, batch.indices, batch.counts, batch.masks[0].numel())
    return pixels_of(batch.masks, noise, 1, FOREGROUND)


def pixels_of(regions: Tensor, noise: Tensor, count: int, label: float) -> tuple[Tensor, Tensor]:
    """``count`` different random pixels (N, count, 2) of each region (N, S, S) bool, with ``label`` (N, count); ignored
    where the region has no more. noise: (N, S S) uniform in 0..1.
    """
    side = regions.shape[-1]
    score = torch.where(regions.flatten(1), noise.to(regions.device), -1.0)
    best, places = score.topk(count, dim=1)
    inside = best >= 0
    points = torch.stack([places % side, places // side], -1).float()
    return torch.where(inside[..., None], points, 0.0), torch.where(inside, label, IGNORED)


def hq_prompts(batch: Batch, seed: int, update: int, *, fewer: bool = False) -> Prompts:
    """What the HQ stage asks with: 1 to 5 points of each mask, half the time up to 5 beside it, and half the time its
    box, which in a quarter of the cases stands alone. How many is drawn once for the batch, so that all ranks agree.

    ``fewer``: the reference's draws leave out the largest numbers of points.
    """
    assert batch.masks is not None, "the HQ stage needs items with masks"
    draw = torch.rand(5, generator=generator("hq prompts", seed, update)).tolist()
    most = HQ_POINTS - 1 if fewer else HQ_POINTS
    positive, negative = 1 + int(draw[0] * most), int(draw[1] * (most + 1)) if draw[2] < 0.5 else 0
    boxes = batch.boxes if draw[3] < 0.5 else None
    if boxes is not None and draw[4] < 0.25:
        return Prompts(None, None, boxes)
    pixels = batch.masks[0].numel()
    noise = [uniform_rows(f"hq {kind}", seed, update, batch.indices, batch.counts, pixels) for kind in ("in", "out")]
    points, labels = pixels_of(batch.masks, noise[0], positive, FOREGROUND)
    found = Prompts(points, labels, boxes)
    if not negative:
        return found
    side = batch.masks.shape[-1]
    beside = (batch.valid(side)[batch.owner] > 0) & ~batch.masks
    return found.with_points(*pixels_of(beside, noise[1], negative, BACKGROUND))


def error_points(
    mask: Tensor, target: Tensor, noise: Tensor, count: int, stride: int, *, corners: bool = False
) -> tuple[Tensor, Tensor]:
    """``count`` points (N, count, 2) in model-frame pixels with labels (N, count), uniform among the pixels where
    ``mask`` and ``target`` (N, h, w) bool differ; (0, 0) with the ignored label where fewer than 10 per point do.

    noise: (N, h w) uniform in 0..1. stride: model-frame pixels per cell. corners: the reference puts the point on the
    cell's first pixel instead of on its centre, 1.5 pixels off at stride 4.
    """
    width = mask.shape[-1]
    wrong = (mask ^ target).flatten(1)
    places = torch.where(wrong, noise, -1.0).topk(count, dim=1).indices
    labels = torch.where(target.flatten(1).gather(1, places), FOREGROUND, BACKGROUND)
    cells = torch.stack([places % width, places // width], -1).float()
    points = cells * stride if corners else (cells + 0.5) * stride - 0.5  # pixel i's centre is at i: encoders add 0.5
    few = wrong.sum(1) < FEWEST * count
    points = torch.where(few[:, None, None], 0.0, points)
    labels = torch.where(few[:, None], IGNORED, labels)
    return points, labels


def best_mask(masks: Tensor, scores: Tensor) -> Tensor:
    """(N, H, W) of (N, M, H, W): the one with the highest score (N, M)."""
    best = scores.argmax(1)
    return masks[torch.arange(len(masks), device=masks.device), best]
