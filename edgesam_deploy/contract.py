"""The I/O contract: what goes in and comes out of every artifact, as data. NumPy only.

An ``Interface`` holds the choices that shape it; its methods give the tensors, which the parts are captured with,
the artifact's metadata is written from, and the predictors feed by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.configs import HqKind
from edgesam_deploy.model.prompts import LABEL_CODES
from edgesam_deploy.model.transforms import PIXEL_MEAN, PIXEL_STD

Io = Literal["contract", "edgesam", "edgesam-dyt", "edgesam-npu", "sam"]
IOS = ("contract", "edgesam", "edgesam-dyt", "edgesam-npu", "sam")
PE_MATRIX = "pe_gaussian_matrix"  # the sidecar of the layout edgesam-npu
Dtype = Literal["float32", "uint8", "int32", "int64", "bool"]
Role = Literal["normal", "scene", "image", "coords", "labels", "mask_logits", "flag", "resized_size", "original_size"]
IMAGE_ENCODER, MASK_DECODER, SEGMENTER = "image_encoder", "mask_decoder", "segmenter"
PROMPT_TRANSFORMER, MASK_HEAD = "prompt_transformer", "mask_head"  # the decoder in two parts
DYNAMIC = "dynamic"
HOISTED = "image_keys"  # prefix of what a pass lets the encoder compute for the decoder
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
class PartSpec:
    """One part of an artifact: the stem of its file's name, inputs, outputs."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Interface:
    """The caller's choices about inputs and outputs of a promptable model (design: the I/O contract).

    points: slots per prompt, the padding point counted, or ``dynamic``. batch: prompts per call, or ``dynamic``.
    scores: ``iou`` predicted IoU, ``stability`` the stability score (offset 1.0) computed in the graph.
    io: ``contract``, or the layout that apps speak: ``edgesam`` and ``edgesam-dyt`` (the scripts of those projects),
    ``edgesam-npu`` (positions encoded by the host), ``sam`` (segment-anything; for HQ-SAM models, its exporter's).
    hq: the model's HQ branch, ``intermediate`` the features it reads, as (channels, height, width); ``multimask`` and
    ``hq_token_only`` as HQ-SAM's forward takes them. hoisted: shapes of further values that the encoder computes for
    the decoder, where a pass moved work there. split: the decoder comes in two parts, ``prompt_transformer`` and
    ``mask_head``, which hand over ``hs`` and ``src``.
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
    hq: HqKind = "none"
    intermediate: tuple[tuple[int, int, int], ...] = ()
    multimask: bool = False
    hq_token_only: bool = False
    hoisted: tuple[tuple[int, ...], ...] = ()
    split: bool = False

    def __post_init__(self) -> None:
        for option, value in (("--points", self.points), ("--batch", self.batch)):
            if value != DYNAMIC and not (isinstance(value, int) and 1 <= value <= 1024):
                raise UsageError(f"{option} {value}: must be a number from 1 to 1024 or 'dynamic'")
        if self.io not in IOS:
            raise UsageError(f"--io {self.io}: must be {', '.join(IOS[:-1])} or {IOS[-1]}")
        if self.scores not in ("iou", "stability"):
            raise UsageError(f"--scores {self.scores}: must be iou or stability")
        if self.io != "contract" and self.batch != 1:
            raise UsageError(f"--io {self.io} knows one prompt per call; leave --batch at 1")
        if self.io == "edgesam-npu" and self.points == DYNAMIC:
            raise UsageError("--io edgesam-npu is for compilers that want static shapes; give --points a number")
        if self.io in ("edgesam", "edgesam-dyt", "edgesam-npu") and self.mask_input:
            raise UsageError(f"--io {self.io} has no mask input; use --io contract or --io sam")
        if self.io == "sam" and not self.mask_input:
            raise UsageError("--io sam always has mask_input and has_mask_input")
        if self.return_single_mask and self.io != "sam":
            raise UsageError("--return-single-mask belongs to --io sam")
        if self.split and self.io not in ("contract", "edgesam-npu"):
            raise UsageError(f"--split: apps for --io {self.io} call one decoder; use contract or edgesam-npu")
        if self.split and DYNAMIC in (self.points, self.batch):
            raise UsageError("--split is for compilers that want static shapes; give --points and --batch numbers")
        self._check_hq()

    def _check_hq(self) -> None:
        own = ("contract", "edgesam-npu")  # these hand hq_features over
        layouts = {"none": IOS, "early": (*own, "edgesam-dyt"), "late": (*own, "sam")}[self.hq]
        if self.io not in layouts:
            raise UsageError(f"--io {self.io} has no place for this model's HQ features; use {', '.join(layouts)}")
        if self.hq != "late" and (self.multimask or self.hq_token_only):
            raise UsageError("--multimask and --hq-token-only belong to HQ-SAM models (sam_hq_*)")
        if self.hq != "none" and self.return_single_mask:
            raise UsageError("an HQ model always returns one mask; leave --return-single-mask out")

    @property
    def mask_count(self) -> int:
        """Masks per prompt: 4, or the one that an HQ model or ``return_single_mask`` chooses."""
        return 1 if self.hq != "none" or self.return_single_mask else 4

    @property
    def foreign_hq(self) -> bool:
        """Whether the HQ work stays in the decoder, where the foreign layout has it."""
        return self.hq != "none" and self.io in ("edgesam-dyt", "sam")

    def parts(self, *, promptable: bool = True) -> dict[str, PartSpec]:
        """What the artifact consists of, in the order it runs."""
        parts = {IMAGE_ENCODER: PartSpec("encoder", self.encoder_inputs(), self.encoder_outputs())}
        if promptable and self.split:
            parts |= self._decoder_parts()
        elif promptable:
            parts[MASK_DECODER] = PartSpec("decoder", self.decoder_inputs(), self.decoder_outputs())
        return parts

    def _decoder_parts(self) -> dict[str, PartSpec]:
        """The decoder's work cut behind the transformer; ``hq_features`` are read by the second part alone."""
        features = self._features()
        first = tuple(spec for spec in self.decoder_inputs() if spec not in features)
        glue = self._glue()
        return {
            PROMPT_TRANSFORMER: PartSpec(PROMPT_TRANSFORMER, first, glue),
            MASK_HEAD: PartSpec(MASK_HEAD, (*glue, *features), self.decoder_outputs()),
        }

    def _glue(self) -> tuple[TensorSpec, TensorSpec]:
        """What the two parts of a decoder hand over, under SAM's own names."""
        own, batch, points = (6 if self.hq != "none" else 5), int(self.batch), int(self.points)
        names = "the IoU token, the mask tokens, " + ("the HQ token, " if own == 6 else "") + "the slots"
        cells = (self.image_size // 16) ** 2
        return (
            TensorSpec("hs", (batch, own + points, self.embed_dim), meaning=f"tokens after the transformer: {names}"),
            TensorSpec("src", (batch, cells, self.embed_dim), meaning="the image side after the transformer, by rows"),
        )

    @property
    def empty_slots(self) -> bool:
        """Whether label -10 is excluded exactly. A foreign layout with dynamic points has no slots to leave empty."""
        return self.io in ("contract", "edgesam-dyt") or self.points != DYNAMIC

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
        return (self._embedding, *self._features(), *self._hoisted())

    def _hoisted(self) -> tuple[TensorSpec, ...]:
        meaning = "computed by the encoder for the decoder"
        return tuple(TensorSpec(f"{HOISTED}_{i}", shape, meaning=meaning) for i, shape in enumerate(self.hoisted))

    def with_hoisted(self, decoder_inputs: tuple[TensorSpec, ...]) -> Interface:
        """This interface and the values that a decoder with ``decoder_inputs`` takes from the encoder beyond it."""
        shapes = (spec.bound({}) for spec in decoder_inputs if spec.name.startswith(f"{HOISTED}_"))
        return replace(self, hoisted=tuple(shapes))

    def _features(self) -> tuple[TensorSpec, ...]:
        """What the encoder hands to the decoder beside the embeddings."""
        low = self.image_size // 4
        if self.hq == "none":
            return ()
        if not self.foreign_hq:
            meaning = "all of the HQ branch that does not depend on the prompt"
            return (TensorSpec("hq_features", (1, self.embed_dim // 8, low, low), meaning=meaning),)
        if self.io == "sam":
            channels, height, width = self.intermediate[0]
            meaning = "features of the first global block; further entries are not read"
            return (TensorSpec("interm_embeddings", (1, 1, height, width, channels), meaning=meaning),)
        meanings = ("the stem's features", "the first stage's", "the second stage's")
        return tuple(
            TensorSpec(f"interm_embeddings_{i}", (1, *shape), meaning=meaning)
            for i, (shape, meaning) in enumerate(zip(self.intermediate, meanings, strict=True))
        )

    def decoder_inputs(self) -> tuple[TensorSpec, ...]:
        size, batch = self.image_size, "batch" if self.batch == DYNAMIC else self.batch
        points = "num_points" if self.points == DYNAMIC else self.points
        frame = f"(x, y) in pixels of the {size} frame"
        codes = ", ".join(f"{code} {name}" for name, code in LABEL_CODES.items() if self.empty_slots or code != -10)
        coords = TensorSpec("point_coords", (batch, points, 2), "float32", "coords", frame, size)
        if self.io == "edgesam-npu":
            meaning = f"sin and cos of 2 pi (2 (c + 0.5) / {size} - 1) @ {PE_MATRIX}, c the points' (x, y)"
            coords = TensorSpec("point_embedding_pe", (batch, points, self.embed_dim), meaning=meaning)
        specs = [self._embedding, coords, TensorSpec("point_labels", (batch, points), "float32", "labels", codes)]
        if self.io == "edgesam-dyt":
            specs += [
                TensorSpec(
                    "boxes", (1, 1, 4), "float32", "coords", f"x0, y0, x1, y1 in pixels of the {size} frame", size
                ),
                TensorSpec("point_valid", (1, 1), "bool", "flag", "false: the points are not there"),
                TensorSpec("boxes_valid", (1, 1), "bool", "flag", "false: the box is not there"),
            ]
        if self.io == "sam":  # its exporter puts the features second, and lets any number of them stand there
            specs[1:1] = [replace(f, shape=("num_features", *f.shape[1:])) for f in self._features()]
        elif not self.foreign_hq:
            specs[1:1] = self._features()
        else:
            specs += self._features()
        if self.mask_input:
            low = size // 4
            specs += [
                TensorSpec("mask_input", (batch, 1, low, low), "float32", "mask_logits", "logits of an earlier call"),
                TensorSpec("has_mask_input", (batch,), "float32", "flag", "1 to use mask_input, 0 to ignore it"),
            ]
        if self.io == "sam":
            meaning = "height, width of the original picture"
            specs.append(TensorSpec("orig_im_size", (2,), "float32", "original_size", meaning, size))
        return (*specs, *self._hoisted())

    def decoder_outputs(self) -> tuple[TensorSpec, ...]:
        if self.io == "sam":
            count, low = self.mask_count, self.image_size // 4
            return (
                TensorSpec("masks", (1, count, "height", "width"), meaning="logits at the original size"),
                TensorSpec("iou_predictions", (1, count), meaning=self._scores.meaning),
                TensorSpec("low_res_masks", (1, count, low, low), meaning="logits"),
            )
        masks = self._masks("masks", "logits; token 0 single-mask, 1 to 3 multi-mask")
        if self.hq != "none":
            masks = self._masks("masks", f"logits of the HQ mask{self._hq_choice}")
        if self.io in ("edgesam", "edgesam-npu"):
            return self._scores, masks
        if self.io == "edgesam-dyt":
            size = self.image_size
            full = replace(masks, shape=(1, self.mask_count, size, size), meaning=f"{masks.meaning}, in the frame")
            return self._scores, full, replace(masks, name="low_res_masks")
        sam = () if self.hq == "none" else (self._masks("masks_sam", "logits of the plain SAM mask"),)
        return (masks, *sam, self._scores)

    @property
    def _hq_choice(self) -> str:
        if self.hq != "late":
            return ""
        plain = "the best of SAM's masks 1 to 3" if self.multimask else "SAM's mask 0"
        return " alone" if self.hq_token_only else f" added to {plain}"

    @property
    def _scores(self) -> TensorSpec:
        batch = "batch" if self.batch == DYNAMIC else self.batch
        meaning = "predicted IoU" if self.scores == "iou" else "stability score of each mask, offset 1.0"
        return TensorSpec("scores", (batch, self.mask_count), meaning=meaning)

    def _masks(self, name: str, meaning: str) -> TensorSpec:
        batch, low = ("batch" if self.batch == DYNAMIC else self.batch), self.image_size // 4
        return TensorSpec(name, (batch, self.mask_count, low, low), meaning=meaning)

    def describe(self) -> dict[str, Any]:
        """The contract as JSON-ready data: for the manifest and for the artifact's own metadata."""
        return {
            "kind": "promptable",
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


def encode_positions(coords: NDArray[Any], matrix: NDArray[Any], image_size: int) -> NDArray[np.float32]:
    """What the host computes in the layout edgesam-npu: (B, N, 2) in the model frame -> (B, N, 2F), sines first."""
    positions = 2 * (coords.astype(np.float64) + 0.5) / image_size - 1
    angles = 2 * np.pi * (positions @ matrix.astype(np.float64))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


@dataclass(frozen=True)
class SegmenterInterface:
    """Inputs and outputs of a semantic model: one part, no prompts, one picture at a time.

    ``argmax``: the class map instead of the logits. ``embed_preprocess``: uint8 pixels, normalised inside.
    """

    image_size: int = 1024
    classes: int = 33
    argmax: bool = False
    embed_preprocess: bool = False

    def parts(self, *, promptable: bool = False) -> dict[str, PartSpec]:
        """The one part, ``segmenter``."""
        assert not promptable
        size = self.image_size
        image = TensorSpec("image", (1, 3, size, size), role="scene", meaning="RGB, ImageNet-normalised")
        if self.embed_preprocess:
            image = TensorSpec("image", (1, size, size, 3), "uint8", "image", "RGB 0..255")
        logits = TensorSpec("logits", (1, self.classes, size, size), meaning="one map per class")
        classes = TensorSpec("class_map", (1, size, size), "int32", meaning="index of the class of each pixel")
        return {SEGMENTER: PartSpec("segmenter", (image,), (classes if self.argmax else logits,))}

    def describe(self) -> dict[str, Any]:
        """The contract as JSON-ready data."""
        return {
            "kind": "semantic",
            **asdict(self),
            "resize_rule": "to S x S without keeping the aspect; larger pictures in tiles of S x S",
            "pixel_mean": list(PIXEL_MEAN),
            "pixel_std": list(PIXEL_STD),
        }


def interface_from(described: Mapping[str, Any]) -> Interface | SegmenterInterface:
    """The interface that ``describe`` wrote down."""
    kind = SegmenterInterface if described.get("kind") == "semantic" else Interface
    known = {f.name for f in fields(kind)}
    values = {key: _tuples(value) for key, value in described.items() if key in known}
    return kind(**values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def describe_tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    """Name, shape, dtype and meaning of tensors, JSON-ready."""
    return [{"name": s.name, "shape": list(s.shape), "dtype": s.dtype, "meaning": s.meaning} for s in specs]
