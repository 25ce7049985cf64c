"""The losses of EdgeSAM's two phases, and of its HQ stage, each by the reference's formula.

Shapes: embeddings (B, C, h, w); mask logits (N, M, H, W) of N prompts; ``valid`` 1 where a cell lies on the picture and
0 on the padding, (B, h, w) or (N, H, W). Every loss is a mean over pictures or prompts, so that it does not grow with
the batch. Where the reference has a fault, the default here is mended and a keyword gives the fault back; the keywords
are set by ``reference_faults`` of a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNEL_TEMPERATURE = 4.0
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
POINTS, OVERSAMPLE, IMPORTANCE = 112 * 112, 3, 0.75  # of PointRend (arXiv 1912.08193), as HQ-SAM sets them


# --- embeddings ------------------------------------------------------------------------------------------------------


def pixel_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Squared error, mean over channels, over the valid pixels of each picture, then over pictures (PIXEL_WISE)."""
    error = (student - teacher).square().mean(1)
    return ((error * valid).sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)).mean()


def channel_loss(student: Tensor, teacher: Tensor, *, mean_over_pixels: bool = False) -> Tensor:
    """T^2 KL(teacher || student) of each channel as a distribution over the pixels, T = 4 (CHANNEL_WISE;
    arXiv 2011.13256): summed over pixels, mean over channels and pictures.

    ``mean_over_pixels``: the reference's default reduction divides by the number of pixels again, 4096 at full size.
    """
    log_student = (student.flatten(2) / CHANNEL_TEMPERATURE).log_softmax(-1)
    target = (teacher.flatten(2) / CHANNEL_TEMPERATURE).softmax(-1)
    divergence = F.kl_div(log_student, target, reduction="none")
    per_channel = divergence.mean(-1) if mean_over_pixels else divergence.sum(-1)
    return per_channel.mean() * CHANNEL_TEMPERATURE**2


def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the cosine similarities between all pairs of pixels (CORRELATION)."""
    ours, theirs = (F.normalize(embeddings.flatten(2), dim=1) for embeddings in (student, teacher))
    return F.mse_loss(ours.transpose(1, 2) @ ours, theirs.transpose(1, 2) @ theirs)


# --- masks -----------------------------------------------------------------------------------------------------------


def mask_target(teacher: Tensor, *, temperature: float = 1.0, soft: bool = False) -> Tensor:
    """What the student's masks are compared with: where the teacher's logits exceed 0, or ``soft``, its probabilities
    at a temperature (USE_TEACHER_LOGITS).
    """
    return (teacher / temperature).sigmoid() if soft else (teacher > 0).to(teacher.dtype)


def bce_loss(logits: Tensor, target: Tensor, valid: Tensor, *, on_probabilities: bool = False) -> Tensor:
    """Binary cross entropy over the valid pixels of all masks of a prompt, then mean over prompts (DECODER_BCE).

    ``on_probabilities``: the reference takes a sigmoid first, which cuts the loss of a pixel, and its gradient, at a
    probability that rounds to 0 or 1, and which half precision does not survive.
    """
    if on_probabilities:
        error = F.binary_cross_entropy(logits.sigmoid(), target, reduction="none")
    else:
        error = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    weight = valid[:, None].expand_as(error)
    return ((error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp_min(1)).mean()


def focal_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Focal loss (arXiv 1708.02002), alpha 0.25 and gamma 2: over the valid pixels of each mask, mean over masks."""
    error = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    missed = probability * (1 - target) + (1 - probability) * target
    alpha = FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target)
    weighted = (alpha * missed**FOCAL_GAMMA * error * valid[:, None]).flatten(2).sum(-1)
    return (weighted / valid.sum((1, 2))[:, None].clamp_min(1)).mean()


def dice_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum p + sum t + 1) of each mask, padding left out, mean over masks (DECODER_DICE)."""
    probability = (logits.sigmoid() * valid[:, None]).flatten(2)
    truth = (target * valid[:, None]).flatten(2)
    overlap = 2 * (probability * truth).sum(-1)
    return (1 - (overlap + 1) / (probability.sum(-1) + truth.sum(-1) + 1)).mean()


def iou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared error of the predicted IoU (N, M) (DECODER_IOU)."""
    return F.mse_loss(predicted, target)


def mask_iou(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """IoU (N, M) of logits above 0 with targets above a half on the valid pixels; 1 where both are empty."""
    ours = (logits > 0) & (valid[:, None] > 0)
    theirs = (target > 0.5) & (valid[:, None] > 0)
    union = (ours | theirs).sum((2, 3))
    return torch.where(union > 0, (ours & theirs).sum((2, 3)) / union.clamp_min(1), 1.0)


# --- inside the decoder ----------------------------------------------------------------------------------------------


def attention_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Squared error of attention probabilities, mean over the attentions (DECODER_ATTN)."""
    return torch.stack([F.mse_loss(student[name], teacher[name]) for name in sorted(student)]).mean()


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of the upscaled features (DECODER_FEAT)."""
    return F.mse_loss(student, teacher)


def query_loss(student: Tensor, teacher: Tensor, *, over_tokens: bool = False) -> Tensor:
    """Squared error of the masks' filters (N, M, C/8), each of unit L1 norm (DECODER_QUERY).

    ``over_tokens``: the reference normalises across the M masks instead of within each filter, so that with one mask
    only the signs are compared.
    """
    axis = 1 if over_tokens else -1
    return F.mse_loss(F.normalize(student, p=1, dim=axis), F.normalize(teacher, p=1, dim=axis))


# --- at uncertain points ---------------------------------------------------------------------------------------------


def uncertain_points(logits: Tensor, valid: Tensor, noise: Tensor, *, count: int = POINTS) -> Tensor:
    """Positions (N, count, 2) as (x, y) in 0..1 where the losses look: three quarters the least certain of
    ``OVERSAMPLE`` times as many random ones, the rest any; logits (N, 1, H, W), whose padding is never uncertain.

    noise: (N, (OVERSAMPLE + 1) * count, 2) uniform in 0..1.
    """
    important = int(IMPORTANCE * count)
    candidates, rest = noise[:, : OVERSAMPLE * count], noise[:, OVERSAMPLE * count :][:, : count - important]
    certainty = at_points(logits.float(), candidates)[:, 0].abs()
    certainty = certainty.masked_fill(at_points(valid[:, None], candidates)[:, 0] <= 0.5, float("inf"))
    best = certainty.topk(important, largest=False).indices
    return torch.cat([candidates.gather(1, best[..., None].expand(-1, -1, 2)), rest], dim=1)


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """(N, C, P) bilinear samples of (N, C, H, W) at (N, P, 2) positions in 0..1.

    Beyond the outermost centres the edge goes on; the reference fades to 0, which makes the frame's edge "uncertain".
    """
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(maps, grid.to(maps.dtype), mode="bilinear", padding_mode="border", align_corners=False)[..., 0]
