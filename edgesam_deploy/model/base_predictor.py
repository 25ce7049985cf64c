"""What every predictor shares, whatever runs the networks: PyTorch, or an emitted artifact. NumPy only.

A subclass gives ``encode`` and ``decode``; pictures, coordinates, slots, mask choice and upsampling are here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgesam_deploy.errors import PromptError
from edgesam_deploy.model.prompts import FloatArray, Slots, slots
from edgesam_deploy.model.transforms import check_image, preprocess, resize_masks, resized_size, stability_score

MASK_CHOICES = {1: slice(0, 1), 3: slice(1, None), 4: slice(None)}


class Answers(NamedTuple):
    """What a decoder says of B prompts: logits (B, M, h, w) and scores (B, M) of M masks, 4 or one; in HQ models the
    plain SAM mask (B, 1, h, w) beside them.
    """

    logits: FloatArray
    scores: FloatArray
    sam: FloatArray | None = None


class PromptPredictor(ABC):
    """``set_image`` once per picture, then ``predict`` for each prompt (SAM's own interface)."""

    image_size: int
    mask_threshold: float = 0.0
    features: Any = None

    _original_size: tuple[int, int] | None = None
    _input_size: tuple[int, int] | None = None

    @abstractmethod
    def encode(self, image: NDArray[np.uint8]) -> Any:
        """Features of a picture (H, W, 3) uint8 RGB."""

    @abstractmethod
    def decode(self, prompts: Slots, mask_input: FloatArray | None) -> Answers:
        """Logits and scores of all masks of B prompts on the current features; mask_input (B, 1, h, w)."""

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the picture in pixels."""
        if self._original_size is None:
            raise PromptError("no picture is set; call set_image first")
        return self._original_size

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the resized picture inside the model frame."""
        if self._input_size is None:
            raise PromptError("no picture is set; call set_image first")
        return self._input_size

    def set_image(self, image: NDArray[np.uint8], image_format: str = "RGB") -> Any:
        """Encode a picture (H, W, 3) uint8, ``image_format`` RGB or BGR; keeps and returns its features."""
        if image_format not in ("RGB", "BGR"):
            raise PromptError(f"image_format {image_format!r}: must be RGB or BGR")
        image = check_image(image)
        if image_format == "BGR":
            image = np.ascontiguousarray(image[..., ::-1])
        self.features = self.encode(image)
        self._original_size = (image.shape[0], image.shape[1])
        self._input_size = resized_size(image.shape[0], image.shape[1], self.image_size)
        return self.features

    def reset_image(self) -> None:
        """Forget the picture."""
        self.features = self._original_size = self._input_size = None

    def preprocess(self, image: NDArray[np.uint8]) -> FloatArray:
        """(H, W, 3) uint8 -> (1, 3, S, S) float32, the ``image`` input of the contract."""
        return preprocess(image, self.image_size)[0]

    def upscale(self, low_res: FloatArray) -> FloatArray:
        """Logits (..., h, w) -> (..., H, W) of the original picture."""
        return resize_masks(low_res, self.input_size, self.original_size, self.image_size)

    def predict_slots(self, point_coords: FloatArray, point_labels: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Logits (B, M, h, w) and scores (B, M) for slots (B, N, 2), (B, N) that are in the model frame already."""
        self.original_size  # noqa: B018 - raises without a picture
        return self.decode(Slots(point_coords.astype(np.float32), point_labels.astype(np.float32)), None)[:2]

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        num_multimask_outputs: int = 3,
        return_logits: bool = False,
        use_stability_score: bool = False,
    ) -> tuple[NDArray[Any], FloatArray, FloatArray]:
        """Masks for one prompt, in pixels of the original picture.

        point_coords (N, 2) as (x, y), point_labels (N,) (codes in ``model.prompts``), box (4,) as x0, y0, x1, y1,
        mask_input (1, S/4, S/4) logits of an earlier call. ``num_multimask_outputs``: 3 the multi-mask tokens, 1 the
        single-mask token, 4 all. Returns masks (C, H, W) bool (float32 logits with ``return_logits``), scores (C,)
        predicted IoU (or stability score, offset 1.0), low-resolution logits (C, S/4, S/4).
        Raises PromptError for what does not fit.
        """

        def one(value: ArrayLike | None) -> Any:
            return None if value is None else np.asarray(value)[None]

        if box is not None:
            box = np.asarray(box).reshape(-1)
        masks, scores, low_res = self.predict_batch(
            one(point_coords), one(point_labels), one(box), one(mask_input),
            num_multimask_outputs, return_logits, use_stability_score,
        )  # fmt: skip
        return masks[0], scores[0], low_res[0]

    def predict_batch(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        num_multimask_outputs: int = 3,
        return_logits: bool = False,
        use_stability_score: bool = False,
    ) -> tuple[NDArray[Any], FloatArray, FloatArray]:
        """As ``predict`` for B prompts on the one picture: every argument and result has a leading B."""
        if num_multimask_outputs not in MASK_CHOICES:
            raise PromptError(f"num_multimask_outputs={num_multimask_outputs}: must be 1, 3 or 4")
        low_res, scores, _ = self.decode(*self.prepared(point_coords, point_labels, boxes, mask_input))
        # a model or a layout that gives one mask has nothing to choose from
        chosen = MASK_CHOICES[num_multimask_outputs] if low_res.shape[1] > 1 else slice(None)
        low_res, scores = low_res[:, chosen], scores[:, chosen]
        if use_stability_score:
            scores = stability_score(low_res, self.mask_threshold)
        masks = self.upscale(low_res)
        return (masks if return_logits else masks > self.mask_threshold), scores, low_res

    def prepared(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
    ) -> tuple[Slots, FloatArray | None]:
        """The arguments of ``predict_batch``, checked and in the model frame: what ``decode`` takes."""
        prompts = slots(point_coords, point_labels, boxes, original_size=self.original_size, image_size=self.image_size)
        return prompts, self._checked_masks(mask_input, prompts.batch)

    def _checked_masks(self, mask_input: ArrayLike | None, batch: int) -> FloatArray | None:
        if mask_input is None:
            return None
        masks = np.asarray(mask_input, dtype=np.float32)
        wanted = (batch, 1, self.image_size // 4, self.image_size // 4)
        if masks.shape != wanted:
            raise PromptError(f"mask_input: expected shape {wanted[1:]} per prompt, got {masks.shape[1:]}")
        if not np.isfinite(masks).all():
            raise PromptError("mask_input: holds NaN or infinity")
        return masks
