"""The reference's mask, the artifact's, and where they differ, on one of the shipped photographs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgesam_deploy.bundle import Bundle
from edgesam_deploy.errors import EdgeSamDeployError
from edgesam_deploy.parity import mask_iou, model_of, shipped_pictures
from edgesam_deploy.runtime import BundleSegmenter, is_large, open_artifact
from edgesam_deploy.targets import target_class

PANEL = 420  # pixels: width of a panel
POINT = (0.45, 0.4)  # of the picture's width and height
MASK, ONLY_REFERENCE, ONLY_ARTIFACT = (30, 144, 255), (220, 40, 40), (255, 170, 0)


@dataclass(frozen=True)
class Panels:
    """JPEG files by caption, and what they show in a sentence."""

    files: Mapping[str, bytes]
    said: str


def parity_panels(bundle: Bundle, checkpoint: str | Path | None = None) -> Panels | str:
    """The panels, or why there are none."""
    if target_class(bundle.target).slow_to_run:
        return f"a run for {bundle.target} takes minutes here"
    if is_large(bundle):
        return "the model is large: a run of it takes tens of seconds and gigabytes"
    if bundle.manifest["weights"]["source"] != "seeded" and checkpoint is None:
        return f"the reference needs the weights: --checkpoint {bundle.manifest['weights'].get('checkpoint')}"
    try:
        return _panels(bundle, checkpoint)
    except (EdgeSamDeployError, ImportError) as e:
        return str(e)


def _panels(bundle: Bundle, checkpoint: str | Path | None) -> Panels:
    name, picture = next(iter(shipped_pictures().items()))
    model, artifact = model_of(bundle.manifest, checkpoint), open_artifact(bundle.path)
    if isinstance(artifact, BundleSegmenter):
        from edgesam_deploy.model.cwsam.model import Cwsam
        from edgesam_deploy.model.cwsam.predictor import CwsamPredictor

        reference = CwsamPredictor(cast("Cwsam", model))
        theirs, ours = (p.predict(picture, tiles=False).class_map for p in (reference, artifact))
        first = np.bincount(theirs.ravel()).argmax()
        same = float((theirs == ours).mean())
        masks = theirs == first, ours == first
        said = f"{name}: the class that the reference gives most pixels; {100 * same:.4f} % of all pixels agree"
    else:
        from edgesam_deploy.model.predictor import SamPredictor
        from edgesam_deploy.model.sam import Sam

        choices = {"multimask": artifact.interface.multimask, "hq_token_only": artifact.interface.hq_token_only}
        promptable = SamPredictor(cast("Sam", model), **choices)
        masks = _best(promptable, picture), _best(artifact, picture)
        said = f"{name}, the first mask for one point; IoU of the two masks {mask_iou(*masks):.6f}"
    return Panels(
        {
            "reference": _jpeg(picture, [(masks[0], MASK)]),
            "artifact": _jpeg(picture, [(masks[1], MASK)]),
            f"difference: {int((masks[0] != masks[1]).sum())} of {masks[0].size} pixels": _jpeg(
                picture, [(masks[0] & ~masks[1], ONLY_REFERENCE), (masks[1] & ~masks[0], ONLY_ARTIFACT)], dim=0.35
            ),
        },
        said,
    )


def _best(predictor: Any, picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The first mask for one point."""
    predictor.set_image(picture)
    height, width = picture.shape[:2]
    masks, _, _ = predictor.predict([[POINT[0] * width, POINT[1] * height]], [1])
    first: NDArray[np.bool_] = masks[0]
    return first


def _jpeg(
    picture: NDArray[np.uint8],
    layers: list[tuple[NDArray[np.bool_], tuple[int, int, int]]],
    dim: float = 1.0,
) -> bytes:
    canvas = picture * dim
    for mask, colour in layers:
        canvas[mask] = 0.35 * canvas[mask] + 0.65 * np.array(colour)
    image = Image.fromarray(canvas.astype(np.uint8))
    image.thumbnail((PANEL, PANEL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
