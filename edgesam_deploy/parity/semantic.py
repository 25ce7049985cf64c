"""A semantic artifact against its model: logits, and the class of every pixel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.model.prompts import FloatArray
from edgesam_deploy.model.semantic import SemanticPredictor, preprocess
from edgesam_deploy.parity.cases import Pictures
from edgesam_deploy.parity.figures import Difference, dead, difference, ignores_input
from edgesam_deploy.runtime import BundleSegmenter

Progress = Callable[[str], None]


def compare_semantic(
    reference: SemanticPredictor,
    artifact: BundleSegmenter,
    pictures: Pictures,
    progress: Progress = lambda _: None,
) -> tuple[list[Difference], list[str]]:
    """One row per picture, resized to the model's frame, and the detectors' findings.

    Unrelated pictures matter more here than elsewhere: routing that a tracer baked in is right on the one it saw.
    """
    rows: list[Difference] = []
    findings: list[str] = []
    pairs: list[tuple[FloatArray, FloatArray]] = []
    for name, picture in pictures.items():
        progress(f"parity: {name}")
        image = preprocess(picture, reference.image_size)
        theirs = reference.infer(image)
        if artifact.has_logits:
            ours = artifact.infer(image)
            classes = ours.argmax(1)
            pairs.append((theirs, ours))
            findings += dead(f"logits of {name}", theirs, ours)
            rows.append(difference(name, "frame", "logits", theirs, ours, class_flips=_flips(theirs, classes)))
        else:
            classes, expected = artifact.infer_map(image), theirs.argmax(1)
            pairs.append((expected.astype(np.float32), classes.astype(np.float32)))
            rows.append(difference(name, "frame", "class_map", *pairs[-1], class_flips=_flips(theirs, classes)))
    return rows, [*findings, *ignores_input("the result ignores the picture", pairs)]


def _flips(logits: FloatArray, classes: NDArray[np.integer]) -> float:
    """Share of pixels with another class than the reference's."""
    expected = logits.argmax(1)
    return 1.0 if expected.shape != classes.shape else float((expected != classes).mean())
