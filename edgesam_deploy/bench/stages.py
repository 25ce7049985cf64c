"""What is timed: each part of an artifact, the host's work around it, the ways from a click and a picture to masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.bench.settings import Settings
from edgesam_deploy.contract import DYNAMIC, IMAGE_ENCODER
from edgesam_deploy.model.mask_generator import SamAutomaticMaskGenerator
from edgesam_deploy.model.semantic import preprocess
from edgesam_deploy.runtime import BundlePredictor, BundleSegmenter

EVERYTHING_RUNS = 3  # of a thousand prompts each


@dataclass(frozen=True)
class Stage:
    """A call to time. prompts: how many it answers; ``runs`` where that many are enough."""

    name: str
    call: Callable[[], object]
    prompts: int = 1
    runs: int | None = None


def stages(
    predictor: BundlePredictor | BundleSegmenter, scene: NDArray[np.uint8], settings: Settings
) -> tuple[list[Stage], list[str]]:
    """The stages on a picture (H, W, 3) uint8, and what was left out, with the reason."""
    if isinstance(predictor, BundleSegmenter):
        return _semantic(predictor, scene), []
    inputs = predictor.encoder_inputs(scene)
    encoder = predictor.runners[IMAGE_ENCODER]
    found = [
        Stage("preprocess", lambda: predictor.encoder_inputs(scene)),
        Stage("encoder", lambda: encoder(inputs)),
    ]
    predictor.set_image(scene)
    if not predictor.has_decoder:
        return found, []
    decoders, skipped = _decoders(predictor, scene, settings)
    return [*found, *decoders, *_ways(predictor, scene), *_everything(predictor, scene, settings)], skipped


def _semantic(segmenter: BundleSegmenter, scene: NDArray[np.uint8]) -> list[Stage]:
    frame = preprocess(scene, segmenter.image_size)
    return [
        Stage("preprocess", lambda: preprocess(scene, segmenter.image_size)),
        Stage("segmenter", lambda: segmenter.infer_map(frame)),
        Stage("end to end", lambda: segmenter.predict(scene, tiles=False)),
    ]


def grid(count: int, scene: NDArray[np.uint8]) -> NDArray[np.float32]:
    """``count`` different points (x, y) inside the picture."""
    steps = (np.arange(count) * 0.618 + 0.3) % 1, (np.arange(count) * 0.382 + 0.4) % 1
    points: NDArray[np.float32] = np.stack([steps[0] * scene.shape[1], steps[1] * scene.shape[0]], -1)
    return points.astype(np.float32)


def _decoders(
    predictor: BundlePredictor, scene: NDArray[np.uint8], settings: Settings
) -> tuple[list[Stage], list[str]]:
    slots = predictor.interface.points
    fits = [n for n in settings.points if slots == DYNAMIC or n + 1 <= int(slots)]
    skipped = [f"{points_text(n)}: the artifact has {slots} slots" for n in settings.points if n not in fits]
    found = []
    for count in fits:
        coords, labels = grid(count, scene)[None], np.ones((1, count))
        prompts, _ = predictor.prepared(coords, labels)
        found.append(Stage(f"prompt encoding, {points_text(count)}", _bound(predictor.prepared, coords, labels)))
        found.append(Stage(f"decoder, {points_text(count)}", _bound(predictor.decode, prompts, None)))
    for count in settings.prompts:
        if predictor.interface.io != "contract" and count > 1:
            skipped.append(f"{count} prompts: --io {predictor.interface.io} knows one prompt per call")
            continue
        together, _ = predictor.prepared(grid(count, scene)[:, None], np.ones((count, 1)))
        found.append(Stage(f"decoder, {count} prompts", _bound(predictor.decode, together, None), prompts=count))
    return found, skipped


def points_text(count: int) -> str:
    """``1 point``, ``2 points``."""
    return f"{count} point{'s' if count > 1 else ''}"


def _bound(function: Callable[..., object], *arguments: Any) -> Callable[[], object]:
    return lambda: function(*arguments)


def _ways(predictor: BundlePredictor, scene: NDArray[np.uint8]) -> list[Stage]:
    """From logits, from a click and from a picture to masks."""
    point, label = grid(1, scene), [1]
    logits = predictor.decode(*predictor.prepared(point[None], [label])).logits
    wanted = logits[:, 1:] if logits.shape[1] > 1 else logits  # --return-single-mask and HQ have one
    count = wanted.shape[1]

    def end_to_end() -> None:
        predictor.set_image(scene)
        predictor.predict(point, label, num_multimask_outputs=count)

    masks = f"{count} mask{'s' if count > 1 else ''}"
    return [
        Stage(f"postprocess, {masks}", lambda: predictor.upscale(wanted) > predictor.mask_threshold),
        Stage("click to masks", lambda: predictor.predict(point, label, num_multimask_outputs=count)),
        Stage("end to end", end_to_end),
    ]


def _everything(predictor: BundlePredictor, scene: NDArray[np.uint8], settings: Settings) -> list[Stage]:
    found = []
    for side in settings.everything:
        generator = SamAutomaticMaskGenerator(predictor, points_per_side=side)
        found.append(Stage(f"everything, {side} x {side}", _bound(generator.generate, scene), side**2, EVERYTHING_RUNS))
    return found
