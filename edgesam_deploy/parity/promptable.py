"""Every output of every kind of prompt, artifact against reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.model.base_predictor import Answers, PromptPredictor
from edgesam_deploy.model.prompts import FloatArray, Slots
from edgesam_deploy.parity.cases import Case, least_cases, usable_cases
from edgesam_deploy.parity.figures import Difference, dead, difference, ignores_input, mask_iou
from edgesam_deploy.parity.verdict import Bounds
from edgesam_deploy.runtime import BundlePredictor

Progress = Callable[[str], None]
FLIP_MARGIN = 1e-3


def compare(
    reference: PromptPredictor,
    artifact: BundlePredictor,
    pictures: Mapping[str, NDArray[np.uint8]],
    bounds: Bounds,
    progress: Progress = lambda _: None,
    *,
    soft: bool = False,
    few: bool = False,
) -> tuple[list[Difference], list[str]]:
    """Every output of every case on every picture, and the detectors' findings (an empty list is good).

    ``few``: of the least cases only, each told to ``progress``.
    ``soft``: the artifact was asked to count a stability score's pixels by sigmoids, so the reference does as well.
    """
    rows: list[Difference] = []
    findings: list[str] = []
    embeddings: list[tuple[FloatArray, FloatArray]] = []
    cases, _ = (least_cases if few else usable_cases)(artifact.interface)
    for name, picture in pictures.items():
        progress(f"parity: {name}")
        pairs = _features(reference.set_image(picture), artifact.set_image(picture), artifact)
        for output, (theirs, ours) in pairs.items():
            rows.append(difference(name, "encoder", output, theirs, ours))
            findings += dead(f"{output} of {name}", theirs, ours)
        embeddings.append(pairs["embeddings"])
        if artifact.has_decoder:
            with _one_thread():
                found, more = _prompt_rows(reference, artifact, name, cases, bounds, soft, progress if few else None)
            rows += found
            findings += more
    findings += ignores_input("embeddings ignore the picture", embeddings)
    return rows, findings


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread: a decoder's many small operators gain nothing from a second one, and beside a busy
    neighbour they wait for it at every barrier (parity took 65 s instead of 18).
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _features(theirs: Any, ours: Any, artifact: BundlePredictor) -> dict[str, tuple[FloatArray, FloatArray]]:
    """The encoders' outputs in pairs. A foreign layout's intermediate features are judged by what the decoder makes of
    them: the reference keeps none.
    """
    expected, given = ([_numpy(f) for f in (fs if isinstance(fs, tuple) else (fs,))] for fs in (theirs, ours))
    if artifact.interface.foreign_hq:
        expected, given = expected[:1], given[:1]
    given = given[: len(given) - len(artifact.interface.hoisted)]  # the decoder's outputs tell of those
    names = ("embeddings", "hq_features")[: len(expected)]
    return dict(zip(names, zip(expected, given, strict=True), strict=True))


def _numpy(features: Any) -> FloatArray:
    array: FloatArray = features.cpu().numpy() if hasattr(features, "cpu") else features
    return array


def _prompt_rows(
    reference: PromptPredictor,
    artifact: BundlePredictor,
    name: str,
    cases: Sequence[Case],
    bounds: Bounds,
    soft: bool,
    progress: Progress | None,
) -> tuple[list[Difference], list[str]]:
    rows: list[Difference] = []
    findings: list[str] = []
    pairs: list[tuple[FloatArray, FloatArray]] = []
    logits = None
    for case in cases:
        if progress is not None:
            progress(f"parity: {name}, {case.name}")
        prompt = case.prompt(*reference.original_size)
        if case.mask and logits is not None:
            prompt["mask_input"] = logits
        theirs, ours = (_answers(p, prompt, artifact, soft) for p in (reference, artifact))
        logits = theirs.logits[:1, :1] if logits is None else logits
        rows += _case_rows(reference, artifact, name, case, theirs, ours, bounds, soft)
        findings += dead(f"logits of {name}, {case.name}", theirs.logits, ours.logits)
        if theirs.logits.shape[0] == 1:
            pairs.append((theirs.logits, ours.logits))
    findings += ignores_input(f"logits ignore the prompt on {name}", pairs)
    return rows, findings


def _answers(predictor: PromptPredictor, prompt: dict[str, Any], artifact: BundlePredictor, soft: bool) -> Answers:
    """Of all masks, or of the one that the artifact's layout chooses."""
    stability = artifact.interface.scores == "stability"
    prompts, masks = predictor.prepared(**prompt)
    if predictor is artifact:
        return Answers(*predictor.decode(prompts, masks))
    logits, scores, sam = predictor.decode(prompts, masks)
    if stability:
        from edgesam_deploy.model.transforms import soft_stability_score, stability_score

        scores = soft_stability_score(logits) if soft else stability_score(logits, predictor.mask_threshold)
    if artifact.interface.return_single_mask:
        best = official_choice(scores, prompts)
        return Answers(logits[:, best : best + 1], scores[:, best : best + 1])
    return Answers(logits, scores, sam)


def official_choice(scores: FloatArray, prompts: Slots) -> int:
    """The mask that segment-anything's exported decoder chooses: 0 above two tokens, else the best of 1 to 3."""
    shift = (prompts.count - 2.5) * np.array([1000.0, 0, 0, 0])
    return int((scores[0] + shift).argmax())


def _case_rows(
    reference: PromptPredictor,
    artifact: BundlePredictor,
    picture: str,
    case: Case,
    theirs: Answers,
    ours: Answers,
    bounds: Bounds,
    soft: bool,
) -> Iterator[Difference]:
    apart = _masks_apart(reference, artifact, theirs.logits, ours.logits, bounds)
    yield difference(picture, case.name, "logits", theirs.logits, ours.logits, **apart)
    if theirs.sam is not None and ours.sam is not None:  # a foreign layout has no room for it
        yield difference(picture, case.name, "logits_sam", theirs.sam, ours.sam)
    counted = artifact.interface.scores == "stability" and not soft
    pixels = _score_pixels(theirs, ours.scores, bounds) if counted else None
    yield difference(
        picture, case.name, "scores", theirs.scores, ours.scores, order_kept=_order_kept(theirs.scores, ours.scores),
        best_mask_flip=_best_mask_flip(theirs.scores, ours.scores), score_pixels=pixels,
    )  # fmt: skip


def _masks_apart(
    reference: PromptPredictor, artifact: BundlePredictor, theirs: FloatArray, ours: FloatArray, bounds: Bounds
) -> dict[str, float]:
    """How the thresholded masks differ at the picture's size."""
    if theirs.shape != ours.shape:
        return {"mask_iou": 0.0, "decided_mask_iou": 0.0, "flipped_pixels": 1.0}
    full = reference.upscale(theirs)
    a, b = full > reference.mask_threshold, artifact.full_masks(ours) > reference.mask_threshold
    undecided = np.abs(full - reference.mask_threshold) <= bounds.relative_l2 * full.std()
    return {
        "mask_iou": mask_iou(a, b),
        "decided_mask_iou": mask_iou(a | undecided, b | undecided),
        "flipped_pixels": float((a != b).mean()),
    }


def _score_pixels(theirs: Answers, scores: FloatArray, bounds: Bounds) -> float:
    area = (theirs.logits > -1).sum((-1, -2))  # the larger of the two counts of a stability score
    if theirs.scores.shape != scores.shape:
        return math.inf
    return float((np.maximum(np.abs(theirs.scores - scores) - bounds.relative_l2, 0) * area).max())


def _best_mask_flip(reference: FloatArray, other: FloatArray) -> bool:
    """Whether another of the multi-mask answers has the best score, in any prompt of the batch."""
    if reference.shape != other.shape or reference.shape[1] < 4:
        return reference.shape != other.shape
    theirs, ours = reference[:, 1:], other[:, 1:]
    best = np.sort(theirs, axis=1)
    clear = best[:, -1] - best[:, -2] > FLIP_MARGIN
    return bool(((theirs.argmax(1) != ours.argmax(1)) & clear).any())


def _order_kept(reference: FloatArray, other: FloatArray) -> bool:
    if reference.shape != other.shape:
        return False
    theirs = reference[:, :, None] - reference[:, None, :]
    ours = other[:, :, None] - other[:, None, :]
    clear = np.abs(theirs) > FLIP_MARGIN
    return bool((np.sign(theirs) == np.sign(ours))[clear].all())
