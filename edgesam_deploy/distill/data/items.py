"""From a picture with annotations to what a network is trained on: tensors in the model frame, prompts chosen.

All randomness of a sample comes from (seed, epoch, index): it is the same whichever process loads it, and after a
resume. A sample that cannot be read is replaced by the next one that can, named, and counted by the trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from edgesam_deploy.distill.data.sources import Annotated, FloatArray, Source, boxes_of
from edgesam_deploy.errors import DataError, ImageError
from edgesam_deploy.model.semantic import preprocess
from edgesam_deploy.model.transforms import PIXEL_MEAN, PIXEL_STD, resized_size

IntArray = NDArray[np.int64]
Masks = NDArray[np.bool_]

JITTER_SHARE, JITTER_LIMIT = 0.1, 20.0  # of a box's side; pixels of the model frame
IGNORED_LABEL = -100  # of cross entropy: pixels that do not count
SCALE_JITTER = (0.1, 2.0)
CROPS = 8  # that may miss every object before a picture is taken as it is
ATTEMPTS = 50  # samples in a row that may be broken before the data set counts as broken


@dataclass(frozen=True)
class ItemOptions:
    """How samples become items; the names of the reference's keys are FILTER_BY_AREA, LOAD_GT_MASK, MASK_NMS,
    BOX_JITTER, MAX_ALLOWED_PROMPTS. Areas are of boxes, in pixels of the model frame.
    """

    image_size: int
    max_prompts: int = 8
    masks: bool = False
    filter_by_area: tuple[float | None, float | None] = (None, None)
    mask_nms: float = 1.0
    box_jitter: bool = False
    augment: Literal["none", "flip_scale"] = "none"
    classes: int = 0  # of a semantic model, whose items have labels and no prompts; 0 for a promptable one
    ignored_label: int = 255  # what stands in label pictures for "do not count"
    with_replacement: bool = False  # the reference draws prompts with replacement: fewer different ones than it says


@dataclass(frozen=True)
class Item:
    """One sample: image (3, S, S) normalised and zero-padded, ``size`` (h, w) of the picture in it, boxes (N, 4),
    points (N, 1, 2) or None, masks (N, S, S) bool or None; labels (S, S) of a semantic one; ``index`` in the source;
    ``broken``: what it stands in for.
    """

    index: int
    name: str
    image: Tensor
    size: tuple[int, int]
    boxes: Tensor
    points: Tensor | None = None
    masks: Tensor | None = None
    labels: Tensor | None = None
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Items side by side: images (B, 3, S, S), sizes (B, 2) as (h, w); prompts of all pictures one after the other,
    ``counts`` (B,) of each: boxes (N, 4), points (N, 1, 2) or None, masks (N, S, S) bool or None; labels (B, S, S)
    int64 or None.
    """

    indices: Tensor
    names: tuple[str, ...]
    images: Tensor
    sizes: Tensor
    counts: Tensor
    boxes: Tensor
    points: Tensor | None
    masks: Tensor | None
    labels: Tensor | None = None
    broken: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Self:
        """The same on a device; what is left in pageable memory is copied while the device works."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in held.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    @property
    def owner(self) -> Tensor:
        """(N,) the picture that each prompt belongs to."""
        return torch.repeat_interleave(torch.arange(len(self.counts), device=self.counts.device), self.counts)

    def valid(self, side: int) -> Tensor:
        """(B, side, side) float: 1 where a cell lies on the picture, by bilinear sampling of the frame's mask above a
        half, as the reference's losses weigh pixels.
        """
        frame = self.images.shape[-1]
        steps = torch.arange(frame, device=self.sizes.device)
        rows, columns = (steps < self.sizes[:, axis, None] for axis in (0, 1))
        full = (rows[:, :, None] & columns[:, None, :]).float()[:, None]
        return (F.interpolate(full, (side, side), mode="bilinear", align_corners=False)[:, 0] > 0.5).float()

    def masks_at(self, side: int) -> Tensor:
        """(N, side, side) float in 0..1: the exact masks averaged over each cell. Needs masks."""
        assert self.masks is not None, "the items were made without masks"
        return F.adaptive_avg_pool2d(self.masks[:, None].float(), side)[:, 0]


def collate(items: Sequence[Item]) -> Batch:
    """One batch of some items."""

    def joined(name: str) -> Tensor | None:
        parts = [getattr(item, name) for item in items]
        return None if any(part is None for part in parts) else torch.cat(parts)

    boxes = joined("boxes")
    assert boxes is not None
    return Batch(
        torch.tensor([item.index for item in items]),
        tuple(item.name for item in items),
        torch.stack([item.image for item in items]),
        torch.tensor([item.size for item in items]),
        torch.tensor([len(item.boxes) for item in items]),
        boxes,
        joined("points"),
        joined("masks"),
        None if items[0].labels is None else torch.stack([item.labels for item in items if item.labels is not None]),
        tuple(name for item in items for name in item.broken),
    )


class Items(Dataset[Item]):
    """A source as a map-style data set. ``set_epoch`` chooses the randomness of augmentation and prompt choice."""

    def __init__(self, source: Source, options: ItemOptions, *, seed: int = 0, limit: int | None = None) -> None:
        self.source, self.options, self.seed = source, options, seed
        self.length = len(source) if limit is None else min(limit, len(source))
        self.epoch = torch.zeros(1, dtype=torch.int64)
        self.epoch.share_memory_()  # type: ignore[no-untyped-call] # seen by workers that outlive an epoch

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epoch[0] = epoch

    def __getitem__(self, index: int) -> Item:
        broken: list[str] = []
        for attempt in range(min(ATTEMPTS, self.length)):
            candidate = (index + attempt) % self.length
            try:
                read = self.source.read(candidate, masks=self.options.masks or self.options.augment != "none")
                rng = np.random.default_rng([self.seed, int(self.epoch[0]), candidate])
                make = make_semantic_item if self.options.classes else make_item
                return replace(make(read, self.options, rng, candidate), broken=tuple(broken))
            except (DataError, ImageError) as e:
                broken.append(f"{self.source.names[candidate]}: {e}")
        raise DataError(f"{len(broken)} samples in a row cannot be used; the first: {broken[0]}")


def make_item(read: Annotated, options: ItemOptions, rng: np.random.Generator, index: int = 0) -> Item:
    """A sample in the model frame. Raises DataError where nothing of it can be asked for."""
    if options.augment == "flip_scale":
        drawn = (flip_and_scale(read, options.image_size, rng) for _ in range(CROPS))
        read = next((crop for crop in drawn if crop.masks is not None and crop.masks.any()), read)
    size = resized_size(*read.size, options.image_size)
    factor = np.array([size[1] / read.size[1], size[0] / read.size[0]] * 2)
    boxes = (read.boxes.astype(np.float64) * factor).astype(np.float32)
    points = None if read.points is None else (read.points.astype(np.float64) * factor[:2]).astype(np.float32)
    usable = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    if read.masks is not None:
        usable = usable[read.masks[usable].any(axis=(1, 2))]
    if not len(usable):
        raise DataError(f"{read.name}: no object with a box and pixels in it")
    kept = usable[within_area(boxes[usable], options.filter_by_area)]
    masks = None if read.masks is None else resize_masks(read.masks[kept], size, options.image_size)
    if masks is not None and options.mask_nms < 1:
        survivors = suppress_covered(masks.numpy(), options.mask_nms)
        kept, masks = kept[survivors], masks[torch.from_numpy(survivors)]
    chosen = choose(len(kept), options.max_prompts, rng, with_replacement=options.with_replacement)
    kept = kept[chosen]
    boxes = boxes[kept]
    return Item(
        index,
        read.name,
        resize_normalize_pad(read.image, size, options.image_size),
        size,
        torch.from_numpy(jitter(boxes, rng) if options.box_jitter else boxes),
        None if points is None else torch.from_numpy(points[kept]),
        None if masks is None or not options.masks else masks[torch.from_numpy(chosen)],
    )


def make_semantic_item(read: Annotated, options: ItemOptions, rng: np.random.Generator, index: int = 0) -> Item:
    """A picture and its labels, both stretched to the model's square as its predictor does. Raises DataError for a
    label that is no class.
    """
    if read.labels is None:
        raise DataError(f"{read.name}: has no labels; a semantic model needs --layout semantic")
    side = options.image_size
    labels = torch.from_numpy(read.labels)
    known = (labels >= 0) & (labels < options.classes)
    if strange := sorted(set(labels[~known & (labels != options.ignored_label)].tolist())):
        raise DataError(f"{read.name}: label {strange[0]} is none of {options.classes} classes (0 to the last)")
    near = F.interpolate(torch.where(known, labels, IGNORED_LABEL)[None, None].double(), (side, side), mode="nearest")
    return Item(
        index,
        read.name,
        torch.from_numpy(preprocess(read.image, side))[0],
        (side, side),
        torch.zeros(0, 4),
        labels=near[0, 0].long(),
    )


def resize_normalize_pad(image: NDArray[np.uint8], size: tuple[int, int], side: int) -> Tensor:
    """(H, W, 3) uint8 -> (3, S, S): training resizes in floating point, bilinear with antialiasing, which is not bit
    equal to the predictor's resize of bytes.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return F.pad((pixels - mean) / std, (0, side - size[1], 0, side - size[0]))


def resize_masks(masks: Masks, size: tuple[int, int], side: int) -> Tensor:
    """(N, H, W) bool -> (N, S, S) bool: nearest, zero-padded."""
    planes = torch.from_numpy(masks)[None].float()
    near = F.interpolate(planes, size, mode="nearest")[0] > 0
    return F.pad(near, (0, side - size[1], 0, side - size[0]))


def within_area(boxes: FloatArray, bounds: tuple[float | None, float | None]) -> IntArray:
    """Indices of boxes whose area lies strictly within ``bounds``; all of them where none does."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    inside = np.ones(len(boxes), dtype=np.bool_)
    if bounds[0] is not None:
        inside &= area > bounds[0]
    if bounds[1] is not None:
        inside &= area < bounds[1]
    return np.flatnonzero(inside) if inside.any() else np.arange(len(boxes))


def suppress_covered(masks: Masks, threshold: float) -> IntArray:
    """Indices, in order, of masks of which at most ``threshold`` is covered by larger ones that are kept (MASK_NMS)."""
    areas = masks.sum((1, 2))
    covered = np.zeros(masks.shape[1:], dtype=np.bool_)
    kept = []
    for index in np.argsort(-areas, kind="stable"):
        if (masks[index] & covered).sum() <= threshold * areas[index]:
            kept.append(int(index))
            covered |= masks[index]
    return np.array(sorted(kept), dtype=np.int64)


def choose(count: int, most: int, rng: np.random.Generator, *, with_replacement: bool) -> IntArray:
    """At most ``most`` of ``count`` indices; all in order where they are no more."""
    if count <= most:
        return np.arange(count)
    if with_replacement:
        return rng.integers(0, count, most)
    return np.sort(rng.permutation(count)[:most])


def jitter(boxes: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Each corner moved by a normal deviate of a tenth of the box's side, at most 20 pixels (BOX_JITTER)."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    noise = np.clip(rng.standard_normal(boxes.shape) * JITTER_SHARE * sides, -JITTER_LIMIT, JITTER_LIMIT)
    moved: FloatArray = (boxes + noise).astype(np.float32)
    return moved


def flip_and_scale(read: Annotated, side: int, rng: np.random.Generator) -> Annotated:
    """Mirrored half the time, then long side at 0.1 to 2 times ``side``, cropped or padded to (side, side): HQ-SAM's
    large-scale jitter. Boxes are those of what is left of the masks.
    """
    assert read.masks is not None
    image, masks = read.image, read.masks
    if rng.random() < 0.5:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
    height, width = resized_size(*read.size, max(8, int(side * rng.uniform(*SCALE_JITTER))))
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
    planes = F.interpolate(torch.from_numpy(masks.copy())[None].float(), (height, width), mode="nearest")[0] > 0
    top, left = (int(rng.integers(0, max(0, extent - side) + 1)) for extent in (height, width))
    window = (slice(top, top + side), slice(left, left + side))
    cut, planes = pixels[:, *window].round().clamp(0, 255).byte(), planes[:, *window]
    padding = (0, side - cut.shape[2], 0, side - cut.shape[1])
    found = F.pad(planes, padding).numpy()
    return Annotated(read.name, F.pad(cut, padding).permute(1, 2, 0).numpy(), boxes_of(found), None, found)
