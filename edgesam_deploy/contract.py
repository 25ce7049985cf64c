"""The I/O contract: what goes in and comes out of every artifact, as data. NumPy only.

An ``Interface`` holds the choices that shape it; its methods give the tensors, which the parts are captured with,
the artifact's metadata is written from, and the predictors feed by name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.prompts import LABEL_CODES
from edgesam_deploy.model.transforms import PIXEL_MEAN, PIXEL_STD

Io = Literal["contract", "edgesam", "sam"]
Dtype = Literal["float32", "uint8", "int64", "bool"]
Role = Literal["normal", "scene", "image", "coords", "labels", "mask_logits", "flag", "resized_size", "original_size"]
DYNAMIC = "dynamic"
DEFAULT_POINTS = 6
SCHEMA = 1


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. A string in ``shape`` is a dynamic dimension's name; ``role`` says what values it takes."""

    name: str
    shape: tuple[int | str, ...]
    dtype: Dtype = "float32"
    role: Role = "normal"
    meaning: str = ""
    extent: int = 1024  # largest coordinate or size, for roles that are positions

    @property
    def dynamic(self) -> dict[int, str]:
        """Axis -> symbol."""
        return {axis: dim for axis, dim in enumerate(self.shape) if isinstance(dim, str)}

    def bound(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape with its symbols replaced."""
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)

    def sample(self, rng: np.random.Generator, sizes: dict[str, int]) -> NDArray[Any]:
        """A random value of the right shape, type and range."""
        values: NDArray[Any] = _SAMPLERS[self.role](self, self.bound(sizes), rng).astype(self.dtype)
        return values


def _sizes_sample(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    return rng.integers(spec.extent // 4, spec.extent, shape, endpoint=True)


def _scene_sample(_: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    """(1, 3, H, W) like a normalised photograph: flat patches, an offset per channel, noise, padding below.

    White noise would not do: its mean is 0 everywhere, which hides what large sums do to fp32 and fp16.
    """
    channels, height, width = shape[1:]
    patch = max(height // 16, 1)
    coarse = rng.standard_normal((channels, -(-height // patch), -(-width // patch)))
    scene = np.kron(coarse, np.ones((patch, patch)))[:, :height, :width]
    scene += rng.uniform(-1, 1, (channels, 1, 1)) + 0.2 * rng.standard_normal((channels, height, width))
    scene[:, int(height * rng.uniform(0.6, 1)) :] = 0
    return scene[None]


_SAMPLERS: dict[Role, Any] = {
    "scene": _scene_sample,
    "normal": lambda _, shape, rng: rng.standard_normal(shape),
    "mask_logits": lambda _, shape, rng: 5 * rng.standard_normal(shape),
    "image": lambda _, shape, rng: rng.integers(0, 255, shape, endpoint=True),
    "coords": lambda spec, shape, rng: rng.uniform(0, spec.extent, shape),
    "labels": lambda _, shape, rng: rng.choice(list(LABEL_CODES.values()), shape),
    "flag": lambda _, shape, rng: rng.integers(0, 1, shape, endpoint=True),
    "resized_size": _sizes_sample,
    "original_size": _sizes_sample,
}


def sample_inputs(specs: tuple[TensorSpec, ...], seed: int) -> dict[str, NDArray[Any]]:
    """Inputs by name. Dynamic dimensions take a size that differs from seed to seed, so nothing can be baked in."""
    rng = np.random.default_rng(seed)
    symbols = sorted({symbol for spec in specs for symbol in spec.dynamic.values()})
    sizes = {symbol: int(2 + (seed + 2 * i) % 5) for i, symbol in enumerate(symbols)}
    return {spec.name: spec.sample(rng, sizes) for spec in specs}


@dataclass(frozen=True)
class Interface:
    """The caller's choices about inputs and outputs (design: the I/O contract).

    points: slots per prompt, the padding point counted, or ``dynamic``. batch: prompts per call, or ``dynamic``.
    scores: ``iou`` predicted IoU, ``stability`` the stability score (offset 1.0) computed in the graph.
    io: ``contract``, or the layout that apps speak: ``edgesam`` (the EdgeSAM scripts), ``sam`` (segment-anything).
    """

    image_size: int = 1024
    points: int | Literal["dynamic"] = DEFAULT_POINTS
    batch: int | Literal["dynamic"] = 1
    mask_input: bool = False
    scores: Literal["iou", "stability"] = "iou"
    io: Io = "contract"
    embed_preprocess: bool = False
    embed_dim: int = 256
    return_single_mask: bool = False

    def __post_init__(self) -> None:
        for option, value in (("--points", self.points), ("--batch", self.batch)):
            if value != DYNAMIC and not (isinstance(value, int) and 1 <= value <= 1024):
                raise UsageError(f"{option} {value}: must be a number from 1 to 1024 or 'dynamic'")
        if self.io not in ("contract", "edgesam", "sam"):
            raise UsageError(f"--io {self.io}: must be contract, edgesam or sam")
        if self.scores not in ("iou", "stability"):
            raise UsageError(f"--scores {self.scores}: must be iou or stability")
        if self.io != "contract" and self.batch != 1:
            raise UsageError(f"--io {self.io} knows one prompt per call; leave --batch at 1")
        if self.io == "edgesam" and self.mask_input:
            raise UsageError("--io edgesam has no mask input; use --io contract or --io sam")
        if self.io == "sam" and not self.mask_input:
            raise UsageError("--io sam always has mask_input and has_mask_input")
        if self.return_single_mask and self.io != "sam":
            raise UsageError("--return-single-mask belongs to --io sam")

    @property
    def empty_slots(self) -> bool:
        """Whether label -10 is excluded exactly. A foreign layout with dynamic points has no slots to leave empty."""
        return self.io == "contract" or self.points != DYNAMIC

    @property
    def _embedding(self) -> TensorSpec:
        side = self.image_size // 16
        return TensorSpec("image_embeddings", (1, self.embed_dim, side, side), meaning="shared by all prompts")

    def encoder_inputs(self) -> tuple[TensorSpec, ...]:
        size = self.image_size
        if not self.embed_preprocess:
            meaning = f"RGB, long side {size}, normalised, then zero-padded right and bottom"
            return (TensorSpec("image", (1, 3, size, size), role="scene", meaning=meaning),)
        meaning = f"RGB 0..255, long side {size}, padded right and bottom with anything"
        return (
            TensorSpec("image", (1, size, size, 3), "uint8", "image", meaning),
            TensorSpec("image_size", (2,), "float32", "resized_size", "height, width of the picture inside", size),
        )

    def encoder_outputs(self) -> tuple[TensorSpec, ...]:
        return (self._embedding,)

    def decoder_inputs(self) -> tuple[TensorSpec, ...]:
        size, batch = self.image_size, "batch" if self.batch == DYNAMIC else self.batch
        points = "num_points" if self.points == DYNAMIC else self.points
        frame = f"(x, y) in pixels of the {size} frame"
        codes = ", ".join(f"{code} {name}" for name, code in LABEL_CODES.items() if self.empty_slots or code != -10)
        specs = [
            self._embedding,
            TensorSpec("point_coords", (batch, points, 2), "float32", "coords", frame, size),
            TensorSpec("point_labels", (batch, points), "float32", "labels", codes),
        ]
        if self.mask_input:
            low = size // 4
            specs += [
                TensorSpec("mask_input", (batch, 1, low, low), "float32", "mask_logits", "logits of an earlier call"),
                TensorSpec("has_mask_input", (batch,), "float32", "flag", "1 to use mask_input, 0 to ignore it"),
            ]
        if self.io == "sam":
            meaning = "height, width of the original picture"
            specs.append(TensorSpec("orig_im_size", (2,), "float32", "original_size", meaning, size))
        return tuple(specs)

    def decoder_outputs(self) -> tuple[TensorSpec, ...]:
        batch, low = ("batch" if self.batch == DYNAMIC else self.batch), self.image_size // 4
        masks = TensorSpec("masks", (batch, 4, low, low), meaning="logits; token 0 single-mask, 1 to 3 multi-mask")
        meaning = "predicted IoU" if self.scores == "iou" else "stability score of each mask, offset 1.0"
        scores = TensorSpec("scores", (batch, 4), meaning=meaning)
        if self.io == "contract":
            return masks, scores
        if self.io == "edgesam":
            return scores, masks
        count = 1 if self.return_single_mask else 4
        return (
            TensorSpec("masks", (1, count, "height", "width"), meaning="logits at the original size"),
            TensorSpec("iou_predictions", (1, count), meaning=meaning),
            TensorSpec("low_res_masks", (1, count, low, low), meaning="logits"),
        )

    def describe(self) -> dict[str, Any]:
        """The contract as JSON-ready data: for the manifest and for the artifact's own metadata."""
        return {
            **asdict(self),
            "resize_rule": "longest_side",
            "pad": "bottom_right",
            "coord_frame": "xy_model_frame",
            "coord_scale": "resized side / original side",
            "pixel_mean": list(PIXEL_MEAN),
            "pixel_std": list(PIXEL_STD),
            "label_codes": dict(LABEL_CODES),
            "mask_threshold": 0.0,
            "mask_upsampling": "bilinear to the model frame, crop to the resized picture, bilinear to the original",
            "padding_point": "append (0, 0) with label -1 to a prompt that has no box; append none to one that has",
        }


def describe_tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    """Name, shape, dtype and meaning of tensors, JSON-ready."""
    return [{"name": s.name, "shape": list(s.shape), "dtype": s.dtype, "meaning": s.meaning} for s in specs]
