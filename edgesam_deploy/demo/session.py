"""One visitor's picture, prompt and masks, over artifacts that all visitors share. NumPy and Pillow, no web framework.

What is shown is a *view* of at most ``VIEW`` pixels a side: clicks come in its pixels, masks are drawn at its size, and
only a download is made at the picture's own. A click therefore costs the decoder and some milliseconds.
"""

from __future__ import annotations

import copy
import json
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgesam_deploy.errors import EdgeSamDeployError, ImageError, PromptError
from edgesam_deploy.model.base_predictor import MASK_CHOICES, PromptPredictor
from edgesam_deploy.model.mask_generator import SamAutomaticMaskGenerator
from edgesam_deploy.model.masks import mask_to_rle, rle_to_coco
from edgesam_deploy.model.semantic import SemanticPredictor, SemanticResult
from edgesam_deploy.model.semantic_classes import class_map_png, class_names
from edgesam_deploy.model.transforms import decode_image, resize_masks
from edgesam_deploy.overlay import overlay_classes, overlay_prompt, png, tint_everything

VIEW = 1024
SAMPLES = Path(__file__).parents[1] / "photographs"
Picture = NDArray[np.uint8]
Mode = Literal["inside", "outside", "remove", "box"]
Predictor = PromptPredictor | SemanticPredictor


@dataclass(frozen=True)
class Limits:
    """What a visitor may bring: bytes of a file, pixels of a picture, points a side in everything-mode.

    ``visitors``: how many are remembered, with a picture each; of more, those that waited longest are forgotten.
    """

    file_bytes: int = 20 << 20
    pixels: int = 40_000_000
    points_per_side: int = 32
    visitors: int = 20


@dataclass(frozen=True)
class Shown:
    """An artifact by the name it is shown with. ``lock``: not every runtime answers two callers at once."""

    label: str
    predictor: Predictor
    lock: Any = field(default_factory=threading.Lock)


@dataclass
class Answer:
    """What one artifact said: low-resolution logits (M, h, w) and scores (M,), or classes; milliseconds by stage.

    ``in_view``: masks at the view's size by their index, as far as they were shown.
    """

    low_res: NDArray[np.float32] | None = None
    scores: NDArray[np.float32] | None = None
    classes: SemanticResult | None = None
    records: list[dict[str, Any]] | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)
    in_view: dict[int, NDArray[np.bool_]] = field(default_factory=dict)


def check_upload(path: Path, limits: Limits) -> None:
    """Raise ImageError for a file or picture above the limits, before a pixel is decoded."""
    size = path.stat().st_size
    if size > limits.file_bytes:
        raise ImageError(f"the file has {size / 2**20:.1f} MB; at most {limits.file_bytes / 2**20:.0f} MB are taken")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit comes next
            with Image.open(path) as image:
                width, height = image.size
    except Image.DecompressionBombError as e:
        raise ImageError(f"the picture is too large: {e}; shrink it") from e
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as e:
        raise ImageError("the file is not a picture that can be read; try PNG or JPEG") from e
    if width * height > limits.pixels:
        raise ImageError(
            f"the picture has {width} x {height} pixels; at most {limits.pixels / 1e6:.0f} million are taken: shrink it"
        )


class Session:
    """A visitor's state. ``shown``: one artifact, or two to compare."""

    def __init__(self, shown: tuple[Shown, ...], limits: Limits | None = None) -> None:
        self.shown, self.limits = shown, limits or Limits()
        # a copy shares the loaded artifact, and has its own features and picture
        self._own = {entry.label: copy.copy(entry.predictor) for entry in shown}
        self.picture: Picture | None = None
        self.view: Picture | None = None
        self.points: list[list[float]] = []
        self.box: list[float] | None = None
        self.chosen = 0
        self.answers: dict[str, Answer] = {}
        self._corner: list[float] | None = None
        self._encoded: dict[str, float] = {}

    # --- what the visitor does ---

    def load(self, path: str | Path) -> None:
        """Take a picture and encode it. Raises ImageError and leaves what was there before."""
        check_upload(Path(path), self.limits)
        self.show(decode_image(Path(path).read_bytes(), Path(path).name))  # messages name the file, not our folder

    def show(self, picture: Picture) -> None:
        """As ``load`` for a picture (H, W, 3) uint8 that was read already."""
        self.picture, self.view = picture, _view(picture)
        self.clear()
        for entry in self.shown:
            predictor = self._own[entry.label]
            if isinstance(predictor, SemanticPredictor):
                found, spent = self._timed(entry, predictor.predict, picture)
                self.answers[entry.label] = Answer(classes=found, milliseconds={"segment": spent})
            else:
                _, spent = self._timed(entry, predictor.set_image, picture)
                self._encoded[entry.label] = spent

    def click(self, x: float, y: float, mode: Mode = "inside") -> None:
        """A click at (x, y) of the view. ``remove`` takes the nearest point away; two clicks in ``box`` are corners.

        Raises PromptError before a picture is there, for artifacts that take no prompts, and for a prompt that the
        artifact has no slots for; the prompt is then what it was.
        """
        scale = self._scale()
        before = [*self.points], self.box, self._corner
        try:
            self._click([x * scale[0], y * scale[1]], mode)
        except EdgeSamDeployError:
            self.points, self.box, self._corner = before
            self._predict()  # of two artifacts, the first may have answered already
            raise

    def _click(self, at: list[float], mode: Mode) -> None:
        if mode == "box":
            self._corner_at(at)
        elif mode == "remove":
            if self.points:
                self.points.remove(min(self.points, key=lambda p: (p[0] - at[0]) ** 2 + (p[1] - at[1]) ** 2))
        else:
            self.points.append([*at, float(mode == "inside")])
        self._predict()

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """A box from corner to corner, in pixels of the view."""
        before = self.box
        self._corner = None
        try:
            self.click(x0, y0, "box")
            self.click(x1, y1, "box")
        except EdgeSamDeployError:
            self.box, self._corner = before, None
            self._predict()
            raise

    def choose(self, index: int) -> None:
        """Which of the masks is shown and downloaded."""
        self.chosen = index

    def clear(self) -> None:
        """Forget prompt and masks; the picture stays encoded."""
        self.points, self.box, self._corner, self.chosen = [], None, None, 0
        self.answers = {label: answer for label, answer in self.answers.items() if answer.classes is not None}

    def everything(self, points_per_side: int = 16) -> None:
        """Masks of everything, by a grid of points. Raises PromptError beyond the limit."""
        self._scale()
        if not 1 <= points_per_side <= self.limits.points_per_side:
            raise PromptError(f"{points_per_side} points a side; from 1 to {self.limits.points_per_side} are allowed")
        self.clear()
        assert self.picture is not None
        for entry, predictor in self._promptable():
            generator = SamAutomaticMaskGenerator(
                copy.copy(predictor), points_per_side=points_per_side, output_mode="uncompressed_rle"
            )
            records, spent = self._timed(entry, generator.generate, self.picture)
            self.answers[entry.label] = Answer(records=records, milliseconds={"everything": spent})

    # --- what the visitor sees ---

    def pictures(self) -> list[tuple[str, Picture]]:
        """One picture per artifact, by its label; of two that can be compared, a third with where they differ."""
        if self.view is None:
            return []
        shown = [(entry.label, self._drawn(entry.label)) for entry in self.shown]
        masks = [self._mask_in_view(entry.label) for entry in self.shown]
        if len(masks) == 2 and masks[0] is not None and masks[1] is not None:
            shown.append(
                ("where they differ", overlay_prompt(self.view, masks[0] ^ masks[1], self._view_points(), None))
            )
        return shown

    def rows(self) -> list[list[str]]:
        """A table: artifact, mask, score, and milliseconds of the encoder, the decoder and of drawing nothing."""
        found = []
        for label, answer in self.answers.items():
            spent = ", ".join(f"{stage} {value:.1f} ms" for stage, value in answer.milliseconds.items())
            if answer.scores is None:
                what = "classes" if answer.records is None else f"{len(answer.records)} masks"
                found.append([label, what, "", spent])
                continue
            for index, score in enumerate(answer.scores):
                mark = "shown" if index == min(self.chosen, len(answer.scores) - 1) else ""
                found.append([label, f"{index} {mark}".strip(), f"{score:.3f}", spent])
        return found

    def choices(self) -> list[tuple[str, int]]:
        """The first artifact's masks to choose from, best score first: words and index; [] where there are none."""
        answer = self.answers.get(self.shown[0].label)
        if answer is None or answer.scores is None:
            return []
        order = np.argsort(-answer.scores, kind="stable")
        return [(f"mask {index}: {answer.scores[index]:.3f}", int(index)) for index in order]

    def difference(self) -> str:
        """How far the two artifacts' shown masks are apart, in pixels of the view; "" where there are no two."""
        masks = [self._mask_in_view(entry.label) for entry in self.shown]
        if len(masks) != 2 or masks[0] is None or masks[1] is None:
            return ""
        apart, union = int((masks[0] ^ masks[1]).sum()), int((masks[0] | masks[1]).sum())
        share = 1.0 if union == 0 else 1 - apart / union
        return f"{apart} of {masks[0].size} pixels shown differ; IoU {share:.4f}"

    # --- what the visitor takes home ---

    def mask(self, label: str | None = None) -> NDArray[np.bool_] | None:
        """The shown mask (H, W) at the picture's own size; None where there is none."""
        label = label or self.shown[0].label
        answer, predictor = self.answers.get(label), self._own[label]
        if answer is None or answer.low_res is None or not isinstance(predictor, PromptPredictor):
            return None
        index = min(self.chosen, len(answer.low_res) - 1)
        found: NDArray[np.bool_] = predictor.upscale(answer.low_res[index][None, None])[0, 0] > predictor.mask_threshold
        return found

    def as_png(self) -> bytes:
        """The shown mask as a PNG of 0 and 255, or the class map. Raises PromptError where there is none."""
        answer = self.answers.get(self.shown[0].label)
        if answer is not None and answer.classes is not None:
            return class_map_png(answer.classes.class_map)
        return png(self._wanted())

    def as_rle(self) -> str:
        """The shown mask as COCO's compressed run lengths, JSON; after ``everything`` a list of all with their figures.

        Raises PromptError where there is none.
        """
        answer = self.answers.get(self.shown[0].label)
        if answer is not None and answer.records is not None:
            packed = [{**record, "segmentation": rle_to_coco(record["segmentation"])} for record in answer.records]
            return json.dumps(packed)
        return json.dumps(rle_to_coco(mask_to_rle(self._wanted())))

    # --- inside ---

    def _wanted(self) -> NDArray[np.bool_]:
        mask = self.mask()
        if mask is None:
            raise PromptError("there is no single mask yet: click on the picture first")
        return mask

    def _scale(self) -> tuple[float, float]:
        if self.picture is None or self.view is None:
            raise PromptError("there is no picture yet: upload one or pick a sample")
        if not self._promptable():
            raise PromptError("this artifact gives every pixel a class; it takes no prompts")
        return self.picture.shape[1] / self.view.shape[1], self.picture.shape[0] / self.view.shape[0]

    def _corner_at(self, at: list[float]) -> None:
        if self._corner is None:
            self._corner, self.box = at, None
            return
        (x0, x1), (y0, y1) = (sorted(pair) for pair in zip(self._corner, at, strict=True))
        self._corner = None
        if x1 - x0 < 1 or y1 - y0 < 1:
            raise PromptError("a box needs two corners that are apart")
        self.box = [x0, y0, x1, y1]

    def _promptable(self) -> list[tuple[Shown, PromptPredictor]]:
        pairs = [(entry, self._own[entry.label]) for entry in self.shown]
        return [(entry, own) for entry, own in pairs if isinstance(own, PromptPredictor)]

    def _predict(self) -> None:
        if not self.points and self.box is None:
            corner = self._corner
            self.clear()
            self._corner = corner
            return
        for entry, predictor in self._promptable():
            coords = [[p[:2] for p in self.points]] if self.points else None
            labels = [[p[2] for p in self.points]] if self.points else None
            boxes = None if self.box is None else [self.box]
            (low_res, scores, _), spent = self._timed(
                entry, lambda p, *asked: p.decode(*p.prepared(*asked)), predictor, coords, labels, boxes
            )
            kept = MASK_CHOICES[3] if low_res.shape[1] > 1 else slice(None)
            stages = {"encode": self._encoded.get(entry.label, 0.0), "decode": spent}
            self.answers[entry.label] = Answer(low_res[0, kept], scores[0, kept], milliseconds=stages)
        first = next(iter(self.answers.values()))
        if len(self.points) + (self.box is not None) == 1 and first.scores is not None:
            self.chosen = int(np.argmax(first.scores))  # a first prompt shows the best; later ones keep the choice

    def _timed(self, entry: Shown, call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
        with entry.lock:
            start = time.perf_counter()
            found = call(*arguments)
            return found, 1000 * (time.perf_counter() - start)

    def _view_points(self) -> list[list[float]]:
        across, down = self._scale()
        waiting = [] if self._corner is None else [[*self._corner, -1.0]]
        return [[x / across, y / down, label] for x, y, label in [*self.points, *waiting]]

    def _drawn(self, label: str) -> Picture:
        assert self.view is not None
        answer = self.answers.get(label)
        if answer is not None and answer.classes is not None:
            found = answer.classes
            return overlay_classes(self.view, found.class_map, class_names(self._classes(label)))
        if answer is not None and answer.records is not None:
            return tint_everything(self.view, answer.records)
        across, down = self._scale()
        box = None if self.box is None else [v / (across, down)[i % 2] for i, v in enumerate(self.box)]
        return overlay_prompt(self.view, self._mask_in_view(label), self._view_points(), box)

    def _classes(self, label: str) -> int:
        own = self._own[label]
        assert isinstance(own, SemanticPredictor)
        return own.classes

    def _mask_in_view(self, label: str) -> NDArray[np.bool_] | None:
        """The shown mask at the view's size, straight from the low-resolution logits."""
        answer, predictor = self.answers.get(label), self._own[label]
        if answer is None or answer.low_res is None or not isinstance(predictor, PromptPredictor):
            return None
        assert self.view is not None
        index = min(self.chosen, len(answer.low_res) - 1)
        if index not in answer.in_view:
            size = self.view.shape[0], self.view.shape[1]
            logits = resize_masks(answer.low_res[index][None, None], predictor.input_size, size, predictor.image_size)
            answer.in_view[index] = logits[0, 0] > predictor.mask_threshold
        return answer.in_view[index]


def _view(picture: Picture) -> Picture:
    image = Image.fromarray(picture)
    image.thumbnail((VIEW, VIEW), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image.convert("RGB"))


def shown_artifacts(predictors: Mapping[str, Predictor]) -> tuple[Shown, ...]:
    """Artifacts by label, ready to be shared by sessions. Raises PromptError for kinds that cannot be compared."""
    kinds = {isinstance(predictor, SemanticPredictor) for predictor in predictors.values()}
    if len(kinds) > 1:
        raise PromptError("one of the two is a semantic model and the other takes prompts; they cannot be compared")
    return tuple(Shown(label, predictor) for label, predictor in predictors.items())
