"""What a stage minimises, as a module around the student: batch and update number in, named losses out.

One forward call holds the whole of an update, refinement included, so that data parallelism wraps it as it is. The
teacher is no sub-module: it is in no state_dict, gets no gradient and is not wrapped.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgesam_deploy.distill import losses as formulas
from edgesam_deploy.distill.data.items import Batch
from edgesam_deploy.distill.prompts import Prompts, best_mask, error_points, first_prompts
from edgesam_deploy.distill.randomness import uniform_rows
from edgesam_deploy.distill.recipe import Recipe
from edgesam_deploy.distill.taps import Taps, tapped
from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.mask_decoder import multimask_slice
from edgesam_deploy.model.sam import Sam

Embed = Callable[[Batch], Tensor]  # a teacher's image embeddings (B, C, h, w) of a batch


@dataclass(frozen=True)
class Losses:
    """``terms`` are weighted and add up to what is minimised; ``count`` is over how many pictures, prompts or
    pixels they are means, by which ranks weigh each other.
    """

    terms: dict[str, Tensor]
    count: float

    @property
    def total(self) -> Tensor:
        return torch.stack(list(self.terms.values())).sum()


class Objective(nn.Module):
    """A student, and the losses of a recipe."""

    def __init__(self, student: Sam, recipe: Recipe) -> None:
        super().__init__()
        self.student = student
        self.recipe = recipe
        self.weights = recipe.objective
        self.faults = recipe.reference_faults

    @abstractmethod
    def compute(self, batch: Batch, update: int) -> Losses:
        """The losses of a batch; ``update`` chooses the random numbers."""

    def forward(self, batch: Batch, update: int) -> tuple[dict[str, Tensor], float]:
        """As ``compute``, in containers that data parallelism looks into for outputs."""
        found = self.compute(batch, update)
        return found.terms, found.count

    def embedding_terms(self, student: Tensor, teacher: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The losses on image embeddings that have a weight."""
        if student.shape != teacher.shape:
            raise UsageError(
                f"the teacher's embeddings are {tuple(teacher.shape[1:])}, the student's {tuple(student.shape[1:])}: "
                "give both the same image_size and embed_dim"
            )
        student, teacher = student.float(), teacher.float()
        found: dict[str, Tensor] = {}
        if self.weights.pixel:
            found["pixel"] = self.weights.pixel * formulas.pixel_loss(student, teacher, batch.valid(student.shape[-1]))
        if self.weights.channel:
            loss = formulas.channel_loss(student, teacher, mean_over_pixels="channel_mean" in self.faults)
            found["channel"] = self.weights.channel * loss
        if self.weights.correlation:
            found["correlation"] = self.weights.correlation * formulas.correlation_loss(student, teacher)
        return found

    def mask_terms(self, logits: Tensor, target: Tensor, valid: Tensor, batch: Batch, update: int) -> dict[str, Tensor]:
        """The losses on masks that have a weight; with ``point_rend`` at its points, and then ``target`` may be finer
        than ``logits``.
        """
        weights, found = self.weights, dict[str, Tensor]()
        if weights.point_rend and (weights.bce or weights.focal or weights.dice):
            numbers = (formulas.OVERSAMPLE + 1) * formulas.POINTS
            noise = uniform_rows("point rend", self.recipe.train.seed, update, batch.indices, batch.counts, numbers, 2)
            with torch.no_grad():
                points = formulas.uncertain_points(logits, valid, noise.to(logits.device))
                valid = (formulas.at_points(valid[:, None], points) > 0.5).to(logits.dtype)
                target = formulas.at_points(target, points)[:, :, None]
            logits = formulas.at_points(logits, points)[:, :, None]
        if weights.bce:
            fault = "bce_on_probabilities" in self.faults
            found["bce"] = weights.bce * formulas.bce_loss(logits, target, valid, on_probabilities=fault)
        if weights.focal:
            found["focal"] = weights.focal * formulas.focal_loss(logits, target, valid)
        if weights.dice:
            found["dice"] = weights.dice * formulas.dice_loss(logits, target, valid)
        return found


class EncoderObjective(Objective):
    """Phase 1: the student's embeddings become the teacher's."""

    def __init__(self, student: Sam, recipe: Recipe, embed: Embed) -> None:
        super().__init__(student, recipe)
        self.embed = embed

    def compute(self, batch: Batch, update: int) -> Losses:
        embeddings = self.student.image_encoder(batch.images)
        return Losses(self.embedding_terms(embeddings, self.embed(batch), batch), len(batch.images))


@dataclass(frozen=True)
class Decoded:
    """masks (N, M, h, w) logits, predicted IoU (N, M), and what the hooks saw."""

    masks: Tensor
    iou: Tensor
    taps: Taps


class PromptObjective(Objective):
    """Phase 2 with a teacher, or learning exact masks without: prompts in the loop.

    With a teacher every mask imitates the teacher's, and refinement looks at the mask that the teacher scores highest.
    Without, the mask that fits best is the one that learns (as SAM does for ambiguous prompts), predicted IoU learns
    what the IoU really is, and refinement looks at the mask that fitted best.
    """

    def __init__(self, student: Sam, recipe: Recipe, teacher: Sam | None = None, embed: Embed | None = None) -> None:
        super().__init__(student, recipe)
        for model in (student, *([teacher] if teacher else [])):
            if not model.promptable or model.hq:
                raise UsageError(f"{model.name}: prompts in the loop need a model with a plain mask decoder")
        self.embed = embed
        self._teacher = (teacher,)  # in a tuple, so that it does not become a sub-module

    def compute(self, batch: Batch, update: int) -> Losses:
        options, seed = self.weights, self.recipe.train.seed
        embeddings = self.student.image_encoder(batch.images)
        taught = None if self.embed is None else self.embed(batch)
        terms: dict[str, Tensor] = {}
        if taught is not None and any((options.pixel, options.channel, options.correlation)):
            terms = self.embedding_terms(embeddings, taught, batch)
        prompts = first_prompts(batch, options.prompts, seed, update, from_masks=options.points_from_masks)
        of_box = prompts.kind == "box"
        iterations = 1 if of_box and not options.iterate_on_box else options.iterations
        multimask = 1 if of_box and not options.multimask_on_box else options.multimask
        seen: tuple[Tensor, Tensor] | None = None
        for iteration in range(iterations):
            if seen is not None:
                prompts = self._refined(prompts, seen, batch, update, iteration)
            ours = self._decode(self.student, embeddings, prompts, batch, multimask)
            found, seen = self._compare(ours, taught, prompts, batch, multimask, update)
            for name, loss in found.items():
                terms[name] = terms.get(name, 0) + loss / iterations
        return Losses(terms, len(batch.boxes))

    def _decode(self, model: Sam, embeddings: Tensor, prompts: Prompts, batch: Batch, multimask: int) -> Decoded:
        points = None if prompts.points is None or prompts.labels is None else (prompts.points, prompts.labels)
        sparse, dense = model.prompt_encoder(points, prompts.boxes)
        weights = self.weights
        inside = weights.feature > 0 or weights.query > 0
        with tapped(model.mask_decoder, attention=weights.attention > 0, features=inside) as taps:
            masks, iou = model.mask_decoder.predict_masks(
                embeddings[batch.owner], model.prompt_encoder.get_dense_pe(), sparse, dense
            )
        chosen = multimask_slice(multimask)
        return Decoded(masks[:, chosen].float(), iou[:, chosen].float(), taps)

    def _compare(
        self, ours: Decoded, taught: Tensor | None, prompts: Prompts, batch: Batch, multimask: int, update: int
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """The losses of one iteration, and the masks (N, h, w) bool, ours and the right one, that the next looks at."""
        valid = batch.valid(ours.masks.shape[-1])[batch.owner]
        (teacher,) = self._teacher
        if teacher is None or taught is None:
            target = (batch.masks_at(ours.masks.shape[-1]) > 0.5).to(ours.masks.dtype)[:, None]
            true_iou = formulas.mask_iou(ours.masks.detach(), target.expand_as(ours.masks), valid)
            fitting = best_mask(ours.masks, true_iou)[:, None]
            terms = self.mask_terms(fitting, target, valid, batch, update)
            terms |= self._iou_term(ours.iou, true_iou)
            return terms, (fitting[:, 0].detach() > 0, target[:, 0] > 0)
        with torch.no_grad():
            theirs = self._decode(teacher, taught, prompts, batch, multimask)
        options = self.weights
        target = formulas.mask_target(theirs.masks, temperature=options.temperature, soft=options.soft_targets)
        terms = self.mask_terms(ours.masks / options.temperature, target, valid, batch, update)
        terms |= self._iou_term(ours.iou, theirs.iou) | self._inner_terms(ours.taps, theirs.taps, multimask)
        chosen = (best_mask(masks, theirs.iou).detach() > 0 for masks in (ours.masks, theirs.masks))
        on_picture = valid > 0
        mine, right = (mask & on_picture for mask in chosen)
        return terms, (mine, right)

    def _iou_term(self, predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
        weights = self.weights
        beside_masks = weights.bce or weights.focal or weights.dice
        if not weights.iou or ("iou_with_masks_only" in self.faults and not beside_masks):
            return {}
        return {"iou": weights.iou * formulas.iou_loss(predicted, target)}

    def _inner_terms(self, ours: Taps, theirs: Taps, multimask: int) -> dict[str, Tensor]:
        weights, found = self.weights, dict[str, Tensor]()
        if weights.attention:
            found["attention"] = weights.attention * formulas.attention_loss(ours.attention, theirs.attention)
        if weights.feature:
            assert ours.features is not None
            assert theirs.features is not None
            found["feature"] = weights.feature * formulas.feature_loss(ours.features, theirs.features)
        if weights.query:
            chosen = multimask_slice(multimask)
            over_tokens = "query_over_tokens" in self.faults
            loss = formulas.query_loss(ours.filters[:, chosen], theirs.filters[:, chosen], over_tokens=over_tokens)
            found["query"] = weights.query * loss
        return found

    def _refined(
        self, prompts: Prompts, seen: tuple[Tensor, Tensor], batch: Batch, update: int, iteration: int
    ) -> Prompts:
        mine, right = seen
        seed, count = self.recipe.train.seed, self.weights.points_per_iteration
        purpose = f"refinement {iteration}"
        noise = uniform_rows(purpose, seed, update, batch.indices, batch.counts, mine[0].numel())
        stride = batch.images.shape[-1] // mine.shape[-1]
        corners = "corner_points" in self.faults
        points, labels = error_points(mine, right, noise.to(mine.device), count, stride, corners=corners)
        return prompts.with_points(points, labels)


def embeddings_of(teacher: Sam, autocast: Callable[[], Any] = nullcontext) -> Embed:
    """A teacher that encodes each batch as it comes."""

    @torch.no_grad()
    def embed(batch: Batch) -> Tensor:
        with autocast():
            return teacher.image_encoder(batch.images)  # type: ignore[no-any-return]

    return embed
