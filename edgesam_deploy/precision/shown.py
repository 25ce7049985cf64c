"""Parts that run one after the other on pictures, for what is seen of them on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgesam_deploy.parity.cases import least_cases
from edgesam_deploy.runtime import BundlePredictor, BundleSegmenter

if TYPE_CHECKING:
    from edgesam_deploy.parity.cases import Pictures


def run_on(artifact: BundlePredictor | BundleSegmenter, pictures: Pictures, *, prompts: bool) -> None:
    """Run the parts on every picture; ``prompts``: the decoder too, on the fewest cases."""
    with torch.no_grad():
        for picture in pictures.values():
            if not isinstance(artifact, BundlePredictor):
                from edgesam_deploy.model.semantic import preprocess

                artifact.infer_map(preprocess(picture, artifact.image_size))
                continue
            artifact.set_image(picture)
            if prompts and artifact.has_decoder:
                for case in least_cases(artifact.interface)[0]:
                    artifact.decode(*artifact.prepared(**case.prompt(*artifact.original_size)))
