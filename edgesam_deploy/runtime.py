"""One predictor over any artifact: open a bundle, set a picture, prompt it. Needs no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.bundle import Bundle, open_bundle
from edgesam_deploy.contract import DYNAMIC, Interface
from edgesam_deploy.errors import BundleError, PromptError
from edgesam_deploy.model.base_predictor import PromptPredictor
from edgesam_deploy.model.prompts import EMPTY, PADDING, FloatArray, Slots
from edgesam_deploy.model.transforms import resize_longest_side
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.base import Runner

IMAGE_ENCODER, MASK_DECODER = "image_encoder", "mask_decoder"


def open_predictor(path: str | Path, provider: str = "cpu", threads: int = 0) -> BundlePredictor:
    """A predictor with SamPredictor's interface over the bundle in the folder ``path``.

    provider: ``cpu``, or ``cuda`` where the installed runtime has it. threads: 0 leaves the choice to the runtime.
    Raises BundleError for a folder that is no bundle, MissingToolkit where the runtime is not installed.
    """
    bundle = open_bundle(path)
    target = make_target(bundle.target)
    runners = {}
    for part in (IMAGE_ENCODER, MASK_DECODER):
        file = bundle.part(part)
        if file is not None:
            if not file.is_file():
                raise BundleError(f"{file} is missing; edgesam-deploy verify {path} tells what else is")
            runners[part] = target.load(file, provider=provider, threads=threads)
    return BundlePredictor(bundle, runners)


class BundlePredictor(PromptPredictor):
    """SamPredictor's interface over an artifact (``features``: image embeddings (1, C, S/16, S/16) float32)."""

    features: FloatArray | None

    def __init__(self, bundle: Bundle, runners: dict[str, Runner]) -> None:
        self.bundle = bundle
        known = Interface.__dataclass_fields__
        self.interface = Interface(**{k: v for k, v in bundle.manifest["contract"].items() if k in known})
        self.image_size = self.interface.image_size
        self._encoder = runners[IMAGE_ENCODER]
        self._decoder = runners.get(MASK_DECODER)
        self._full: FloatArray | None = None  # --io sam: the last call's masks at the original size

    @property
    def has_decoder(self) -> bool:
        """False for the bundle of an image encoder alone."""
        return self._decoder is not None

    @property
    def executed(self) -> str:
        """What ran the artifact, with its version."""
        return self._encoder.description

    def full_masks(self, low_res: FloatArray) -> FloatArray:
        """Logits at the picture's size: the artifact's own where it gives them (``--io sam``), else upscaled."""
        return self.upscale(low_res) if self._full is None else self._full

    def encode(self, image: NDArray[np.uint8]) -> FloatArray:
        if not self.interface.embed_preprocess:
            return self._encoder({"image": self.preprocess(image)})["image_embeddings"]
        size = self.image_size
        resized = resize_longest_side(image, size)
        height, width = resized.shape[:2]
        padded = np.zeros((1, size, size, 3), np.uint8)
        padded[0, :height, :width] = resized
        inside = np.array([height, width], np.float32)
        return self._encoder({"image": padded, "image_size": inside})["image_embeddings"]

    def decode(self, prompts: Slots, mask_input: FloatArray | None) -> tuple[FloatArray, FloatArray]:
        """B prompts through an artifact whose batch may be smaller or larger: in chunks, the last one filled up."""
        if self._decoder is None:
            raise PromptError(f"{self.bundle.path} holds an image encoder alone; it takes no prompts")
        if mask_input is not None and not self.interface.mask_input:
            raise PromptError("this artifact takes no mask_input; build it with --mask-input")
        if self.features is None:
            raise PromptError("no picture is set; call set_image first")
        prompts = self._fitted(prompts)
        step = prompts.batch if self.interface.batch == DYNAMIC else int(self.interface.batch)
        results = [self._chunk(prompts, mask_input, start, step) for start in range(0, prompts.batch, step)]
        masks, scores = (np.concatenate(parts) for parts in zip(*results, strict=True))
        return masks, scores

    def _fitted(self, prompts: Slots) -> Slots:
        interface = self.interface
        if interface.points != DYNAMIC:
            return prompts.padded(int(interface.points))
        if interface.empty_slots:  # a dynamic axis still wants an entry
            return prompts.padded(max(prompts.count, 1))
        if not prompts.count or (prompts.labels == EMPTY).any():
            raise PromptError(f"--io {interface.io} with dynamic points has no empty slots: give every prompt a point")
        return prompts

    def _chunk(
        self, prompts: Slots, mask_input: FloatArray | None, start: int, step: int
    ) -> tuple[FloatArray, FloatArray]:
        count = min(step, prompts.batch - start)
        missing = step - count
        chosen = slice(start, start + count)
        inputs: dict[str, NDArray[Any]] = {
            "image_embeddings": self.features,  # type: ignore[dict-item]
            "point_coords": np.pad(prompts.coords[chosen], ((0, missing), (0, 0), (0, 0))),
            "point_labels": np.pad(prompts.labels[chosen], ((0, missing), (0, 0)), constant_values=PADDING),
        }
        if self.interface.mask_input:
            low = self.image_size // 4
            masks = np.zeros((step, 1, low, low), np.float32)
            if mask_input is not None:
                masks[:count] = mask_input[chosen]
            inputs["mask_input"] = masks
            inputs["has_mask_input"] = np.full(step, mask_input is not None, np.float32)
        if self.interface.io == "sam":
            inputs["orig_im_size"] = np.array(self.original_size, np.float32)
        outputs = self._decoder(inputs)  # type: ignore[misc]
        names = ("masks", "scores")
        if self.interface.io == "sam":
            names, self._full = ("low_res_masks", "iou_predictions"), outputs["masks"]
        return outputs[names[0]][:count], outputs[names[1]][:count]
