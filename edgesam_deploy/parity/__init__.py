"""Is the artifact the checkpoint's predictor? Measured, in segmentation terms, on pictures and on seeded scenes.

Reference: ``SamPredictor`` in fp32 PyTorch. It is compared twice: with the model as it was asked for (its neck, its
GELU), which is what a converter must reproduce, and, where the caller chose an approximation, with the checkpoint's own
form, so that the price of the choice is told apart from converter error. The verdict is pass, fail, or not verified.

Definitions: the IoU of two empty masks is 1; a best-mask flip counts where the reference's margin between the scores
exceeds 1e-3; decibels are 20 log10(|reference| / |error|) in L2. The verdict's mask IoU counts only pixels that the
reference decides, |logit| above the relative bound times the standard deviation: in a small mask a single pixel whose
logit is 0 to six digits would otherwise decide. The plain IoU stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgesam_deploy.parity.cases import (
    SEEDS,
    Pictures,
    few_pictures,
    least_cases,
    least_pictures,
    seeded_scene,
    shipped_pictures,
    usable_cases,
)
from edgesam_deploy.parity.figures import Difference, mask_iou, summarise
from edgesam_deploy.parity.promptable import compare, official_choice
from edgesam_deploy.parity.semantic import compare_semantic
from edgesam_deploy.parity.verdict import BOUNDS, Bounds, Parity, Verdict, judge
from edgesam_deploy.runtime import BundlePredictor, BundleSegmenter, is_large

if TYPE_CHECKING:
    from torch import nn

    from edgesam_deploy.bundle import Bundle
    from edgesam_deploy.model.cwsam.model import Cwsam
    from edgesam_deploy.model.sam import Sam

Progress = Callable[[str], None]

__all__ = [
    "BOUNDS",
    "SEEDS",
    "Bounds",
    "Difference",
    "Parity",
    "Verdict",
    "bounds_of",
    "check",
    "compare",
    "compared",
    "few_pictures",
    "judge",
    "mask_iou",
    "measure",
    "measure_on",
    "model_of",
    "official_choice",
    "seeded_scene",
    "shipped_pictures",
    "unmeasured",
    "usable_cases",
]  # fmt: skip


def measure(
    model: Sam | Cwsam,
    artifact: BundlePredictor | BundleSegmenter,
    *,
    pictures: Pictures | None = None,
    progress: Progress = lambda _: None,
) -> Parity:
    """Parity of an artifact with ``model``, on the shipped photographs (or ``pictures``) and two seeded scenes."""
    chosen = dict(shipped_pictures() if pictures is None else pictures)
    chosen.update({f"seed {seed}": seeded_scene(seed) for seed in SEEDS})
    return measure_on(model, artifact, chosen, progress=progress)


def measure_on(
    model: Sam | Cwsam,
    artifact: BundlePredictor | BundleSegmenter,
    pictures: Pictures,
    *,
    progress: Progress = lambda _: None,
    few: bool = False,
) -> Parity:
    """Parity on exactly these pictures; ``few``: with two prompts each, where a run takes minutes."""
    precision, bounds = bounds_of(artifact.bundle)
    soft = _counts_softly(artifact)
    found = compared(model, artifact, pictures, bounds, progress, soft=soft, few=few)
    verdict, reasons = judge(*found, bounds)
    parity = Parity(verdict, reasons, artifact.executed, _described(model), precision, bounds, found[0])
    if isinstance(artifact, BundlePredictor):
        parity.skipped = (least_cases if few else usable_cases)(artifact.interface)[1]
    own = model.in_own_form() or (model if soft else None)
    if own is not None:
        rows, _ = compared(own, artifact, dict(list(pictures.items())[:2]), bounds, progress, few=few)
        counted = ", pixels counted one by one" if soft else ""
        parity.faithful = {"reference": _described(own) + counted, "summary": summarise(rows)}
    return parity


def unmeasured(model: Sam | Cwsam, bundle: Bundle, why: str) -> Parity:
    """The verdict on a bundle that nothing was run of: not verified, and ``why``."""
    precision, bounds = bounds_of(bundle)
    return Parity("not verified", [why], "nothing", _described(model), precision, bounds)


def bounds_of(bundle: Bundle) -> tuple[str, Bounds]:
    """The precision of a bundle and what it may differ by: its target's own row of ``BOUNDS``, or the precision's."""
    precision = str(bundle.manifest["options"].get("precision", "fp32"))
    return precision, BOUNDS.get(f"{bundle.target} {precision}") or BOUNDS[precision]


def _counts_softly(artifact: BundlePredictor | BundleSegmenter) -> bool:
    """Whether a pass let the stability score count pixels by sigmoids, as some compilers want it."""
    passes = [step for part in artifact.bundle.manifest["parts"].values() for step in part.get("passes", ())]
    return any(step["name"] == "legalize_comparison_sums" and step["sites"] for step in passes)


def compared(
    model: Sam | Cwsam,
    artifact: BundlePredictor | BundleSegmenter,
    pictures: Pictures,
    bounds: Bounds,
    progress: Progress,
    *,
    soft: bool = False,
    few: bool = False,
) -> tuple[list[Difference], list[str]]:
    """Every output of every case on every picture, artifact against ``model``, and the detectors' findings."""
    if isinstance(artifact, BundleSegmenter):
        from edgesam_deploy.model.cwsam.predictor import CwsamPredictor

        return compare_semantic(CwsamPredictor(cast("Cwsam", model)), artifact, pictures, progress)
    from edgesam_deploy.model.predictor import SamPredictor

    interface = artifact.interface
    choices = {"multimask": interface.multimask, "hq_token_only": interface.hq_token_only}
    with _channels_last(model):
        reference = SamPredictor(cast("Sam", model), **choices)
        return compare(reference, artifact, pictures, bounds, progress, soft=soft, few=few)


@contextmanager
def _channels_last(model: nn.Module) -> Iterator[None]:
    """Convolution kernels in the order that PyTorch's depthwise convolutions are ten times faster in on a CPU. The
    values stay, and when the block ends the order is the caller's again.
    """
    import torch

    kernels = [(p, p.data) for p in model.parameters() if p.dim() == 4]
    for parameter, data in kernels:
        parameter.data = data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter, data in kernels:
            parameter.data = data


def _described(model: Sam | Cwsam) -> str:
    encoder = model.config.image_encoder
    named = {"upsample": "neck", "gelu": "GELU"}
    facts = [f"{getattr(encoder, field)} {noun}" for field, noun in named.items() if hasattr(encoder, field)]
    return f"{model.name}, fp32 PyTorch{''.join(f', {fact}' for fact in facts)}; {model.weights}"


def check(
    path: str | Path,
    model: Sam | Cwsam | None = None,
    *,
    checkpoint: str | Path | None = None,
    pictures: Pictures | None = None,
    provider: str = "cpu",
    full: bool = False,
    progress: Progress = lambda _: None,
) -> Parity:
    """Measure a bundle against its model, and write ``parity.json`` into it.

    Where the target is slow to run, one photograph and two prompts are, unless ``full`` or ``pictures`` are given.
    Photographs that the artifact was calibrated with are left out.

    The model is rebuilt from the manifest: from its seed, or from ``checkpoint`` (whose hash must be the manifest's).
    Without ``pictures``, a model too large for all of the shipped ones is measured on fewer, as its build was.
    Raises BundleError for a bundle that does not verify, CheckpointError for another checkpoint.
    """
    from edgesam_deploy.bundle import verify
    from edgesam_deploy.runtime import open_artifact
    from edgesam_deploy.targets import target_class

    bundle = verify(path)
    if model is None:
        model = model_of(bundle.manifest, checkpoint)
    artifact = open_artifact(path, provider)
    known = (bundle.read_json("calibration.json") or {}).get("pictures", {})
    slow = target_class(bundle.target).slow_to_run and not full
    if pictures is None and known and not slow:
        pictures = {name: picture for name, picture in shipped_pictures().items() if name not in known}
    if slow:
        parity = measure_on(model, artifact, pictures or least_pictures(known), progress=progress, few=True)
    elif pictures is None and is_large(bundle):
        parity = measure_on(model, artifact, few_pictures(), progress=progress)
    else:
        parity = measure(model, artifact, pictures=pictures, progress=progress)
    bundle.write_json("parity.json", parity.to_json())
    return parity


def model_of(manifest: Mapping[str, Any], checkpoint: str | Path | None) -> Sam | Cwsam:
    """The model that a bundle was built from, whose weights may have come along with this package. Raises UsageError
    without its checkpoint, CheckpointError for another.
    """
    from edgesam_deploy.errors import CheckpointError, UsageError
    from edgesam_deploy.model.fetch import shipped_weights
    from edgesam_deploy.model.registry import load

    weights, made = manifest["weights"], manifest["model"]
    if weights["source"] == "seeded":
        return load(made["name"], seed=weights["seed"], config=made["config"])
    own = shipped_weights(made["name"])
    if checkpoint is None and own is not None and own.name == weights["checkpoint"]:
        checkpoint = own
    if checkpoint is None:
        raise UsageError(
            f"this bundle was built from {weights['checkpoint']}; pass --checkpoint PATH to compare it with that file"
        )
    model = load(made["name"], checkpoint, config=made["config"])
    if model.weights.sha256 != weights["sha256"]:
        raise CheckpointError(
            f"{checkpoint} is not the file this bundle was built from ({weights['checkpoint']}, sha256 "
            f"{weights['sha256'][:12]}): pass that one by --checkpoint, or build anew"
        )
    return model
