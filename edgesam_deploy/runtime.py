"""One predictor over any artifact: open a bundle, set a picture, prompt it. Needs no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.bundle import Bundle, open_bundle
from edgesam_deploy.contract import (
    DYNAMIC,
    IMAGE_ENCODER,
    MASK_DECODER,
    MASK_HEAD,
    PE_MATRIX,
    PROMPT_TRANSFORMER,
    SEGMENTER,
    Interface,
    SegmenterInterface,
    encode_positions,
    interface_from,
)
from edgesam_deploy.cost import LARGE
from edgesam_deploy.errors import BundleError, PromptError
from edgesam_deploy.model.base_predictor import Answers, PromptPredictor
from edgesam_deploy.model.prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, EMPTY, PADDING, FloatArray, Slots
from edgesam_deploy.model.semantic import SemanticPredictor
from edgesam_deploy.model.transforms import PIXEL_MEAN, PIXEL_STD, resize_longest_side
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.base import Arrays, Runner

DECODERS = ((MASK_DECODER,), (PROMPT_TRANSFORMER, MASK_HEAD))  # the parts of one, in the order they run
AT_ONCE = 16  # prompts per call of a dynamic batch: more gain nothing in ONNX Runtime, and each takes 20 MB
PARTS = (IMAGE_ENCODER, *DECODERS[0], *DECODERS[1], SEGMENTER)


def open_artifact(path: str | Path, provider: str = "cpu", threads: int = 0) -> BundlePredictor | BundleSegmenter:
    """The bundle in the folder ``path``, ready to run: SamPredictor's interface, or a SemanticPredictor.

    provider: ``cpu``, ``cuda`` where the installed runtime has it, or ``openvino`` for onnx and npu bundles. threads: 0
    leaves the choice to the runtime.
    Raises BundleError for a folder that is no bundle, MissingToolkit where the runtime is not installed.
    """
    bundle = open_bundle(path)
    target = make_target(bundle.target)
    runners = {}
    for part in PARTS:
        file = bundle.part(part)
        if file is not None:
            if not file.exists():
                raise BundleError(f"{file} is missing; edgesam-deploy verify {path} tells what else is")
            runners[part] = target.load(file, part=part, provider=provider, threads=threads, lean=is_large(bundle))
    return BundleSegmenter(bundle, runners) if SEGMENTER in runners else BundlePredictor(bundle, runners)


def is_large(bundle: Bundle) -> bool:
    """Whether a part is so large that one run takes tens of seconds and gigabytes."""
    return any(count > LARGE for count in bundle.manifest.get("macs", {}).values())


def is_semantic(path: str | Path) -> bool:
    """Whether the bundle in ``path`` is of a semantic model. Raises BundleError for a folder that is no bundle."""
    return SEGMENTER in open_bundle(path).manifest["parts"]


def open_predictor(path: str | Path, provider: str = "cpu", threads: int = 0) -> BundlePredictor:
    """As ``open_artifact`` for a promptable model; raises PromptError for a semantic one."""
    artifact = open_artifact(path, provider, threads)
    if isinstance(artifact, BundleSegmenter):
        raise PromptError(f"{path} holds a semantic model, which takes no prompts; use: edgesam-deploy run")
    return artifact


class BundlePredictor(PromptPredictor):
    """SamPredictor's interface over an artifact (``features``: the encoder's outputs, an array or a tuple of them)."""

    features: FloatArray | tuple[FloatArray, ...] | None

    def __init__(self, bundle: Bundle, runners: dict[str, Runner]) -> None:
        self.bundle = bundle
        interface = interface_from(bundle.manifest["contract"])
        assert isinstance(interface, Interface)
        self.interface = interface
        self.image_size = interface.image_size
        self.runners = runners
        self._encoder = runners[IMAGE_ENCODER]
        self._decoder = _decoder(bundle, runners)
        self._pe_matrix = _pe_matrix(bundle) if interface.io == "edgesam-npu" else None
        self._full: FloatArray | None = None  # foreign layouts: the last call's masks, larger than the low-resolution

    @property
    def has_decoder(self) -> bool:
        """False for the bundle of an image encoder alone."""
        return self._decoder is not None

    @property
    def executed(self) -> str:
        """What ran the artifact, with its version."""
        return self._encoder.description

    def full_masks(self, low_res: FloatArray) -> FloatArray:
        """Logits at the picture's size: the artifact's own where its layout gives them, else upscaled."""
        if self._full is None:
            return self.upscale(low_res)
        return self._full if self.interface.io == "sam" else self.upscale(self._full)

    def encode(self, image: NDArray[np.uint8]) -> FloatArray | tuple[FloatArray, ...]:
        outputs = self._encoder(self.encoder_inputs(image))
        features = tuple(outputs[spec.name] for spec in self.interface.encoder_outputs())
        return features if len(features) > 1 else features[0]

    def encoder_inputs(self, image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """What the encoder takes for a picture (H, W, 3) uint8 RGB, by name: the host's part of the work."""
        if not self.interface.embed_preprocess:
            return {"image": self.preprocess(image)}
        size = self.image_size
        resized = resize_longest_side(image, size)
        height, width = resized.shape[:2]
        padded = np.zeros((1, size, size, 3), np.uint8)
        padded[0, :height, :width] = resized
        return {"image": padded, "image_size": np.array([height, width], np.float32)}

    def decode(self, prompts: Slots, mask_input: FloatArray | None) -> Answers:
        """B prompts through an artifact whose batch may be smaller or larger: in chunks, the last one filled up where
        its size is fixed.
        """
        if self._decoder is None:
            raise PromptError(f"{self.bundle.path} holds an image encoder alone; it takes no prompts")
        if mask_input is not None and not self.interface.mask_input:
            raise PromptError("this artifact takes no mask_input; build it with --mask-input")
        if self.features is None:
            raise PromptError("no picture is set; call set_image first")
        if not prompts.batch:
            raise PromptError("no prompts given")
        prompts = self._fitted(prompts)
        step = AT_ONCE if self.interface.batch == DYNAMIC else int(self.interface.batch)
        whole: list[FloatArray] = []
        results = [self._chunk(prompts, mask_input, start, step, whole) for start in range(0, prompts.batch, step)]
        self._full = np.concatenate(whole) if whole else None
        parts = zip(*results, strict=True)
        return Answers(*(None if part[0] is None else np.concatenate(part) for part in parts))  # type: ignore[arg-type]

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
        self, prompts: Slots, mask_input: FloatArray | None, start: int, step: int, whole: list[FloatArray]
    ) -> Answers:
        """``whole`` gets the larger masks that foreign layouts give."""
        count = min(step, prompts.batch - start)
        missing = 0 if self.interface.batch == DYNAMIC else step - count
        chosen = slice(start, start + count)
        features = self.features if isinstance(self.features, tuple) else (self.features,)
        names = (spec.name for spec in self.interface.encoder_outputs())
        inputs: dict[str, Any] = {
            **dict(zip(names, features, strict=True)),
            "point_coords": np.pad(prompts.coords[chosen], ((0, missing), (0, 0), (0, 0))),
            "point_labels": np.pad(prompts.labels[chosen], ((0, missing), (0, 0)), constant_values=PADDING),
        }
        if self.interface.mask_input:
            low = self.image_size // 4
            masks = np.zeros((count + missing, 1, low, low), np.float32)
            if mask_input is not None:
                masks[:count] = mask_input[chosen]
            inputs["mask_input"] = masks
            inputs["has_mask_input"] = np.full(count + missing, mask_input is not None, np.float32)
        if self.interface.io == "sam":
            inputs["orig_im_size"] = np.array(self.original_size, np.float32)
        if self._pe_matrix is not None:
            coords = inputs.pop("point_coords")
            inputs["point_embedding_pe"] = encode_positions(coords, self._pe_matrix, self.image_size)
        if self.interface.io == "edgesam-dyt":
            inputs |= _box_apart(inputs["point_coords"], inputs["point_labels"])
        outputs = self._decoder(inputs)  # type: ignore[misc]
        if self.interface.io in ("sam", "edgesam-dyt"):
            whole.append(outputs["masks"])
            scores = outputs["iou_predictions" if self.interface.io == "sam" else "scores"]
            return Answers(outputs["low_res_masks"], scores)
        sam = outputs.get("masks_sam")
        return Answers(outputs["masks"][:count], outputs["scores"][:count], None if sam is None else sam[:count])


class _Chain:
    """Parts that run one after the other, each fed by name with what was given and what the ones before it made."""

    def __init__(self, steps: list[tuple[Runner, list[str]]]) -> None:
        self.steps = steps
        self.description = steps[0][0].description

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        values = dict(inputs)
        for run, names in self.steps:
            values |= run({name: values[name] for name in names})
        return values


def _decoder(bundle: Bundle, runners: dict[str, Runner]) -> Runner | None:
    """The decoder's one part, or its parts in a row; None for an image encoder alone."""
    chosen = next((parts for parts in DECODERS if parts[0] in runners), ())
    if len(chosen) == 1:
        return runners[chosen[0]]
    described = bundle.manifest["parts"]
    steps = [(runners[part], [t["name"] for t in described[part]["inputs"]]) for part in chosen]
    return _Chain(steps) if steps else None


def _pe_matrix(bundle: Bundle) -> FloatArray:
    """(2, F), from the sidecar: float32, little endian, row by row."""
    path = bundle.path / f"{PE_MATRIX}.bin"
    try:
        return np.fromfile(path, "<f4").reshape(2, -1)
    except (OSError, ValueError) as e:
        raise BundleError(f"{path} cannot be read; edgesam-deploy verify {bundle.path} tells what is missing") from e


def _box_apart(coords: FloatArray, labels: FloatArray) -> dict[str, NDArray[Any]]:
    """Slots (1, N) as the layout edgesam-dyt takes them: a pair of box corners leaves the points."""
    row = list(labels[0])
    boxed = row.count(BOX_TOP_LEFT) == row.count(BOX_BOTTOM_RIGHT) == 1
    corner = row.index(BOX_TOP_LEFT) if boxed else 0
    boxed = boxed and row[corner : corner + 2] == [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]
    box = coords[:, corner : corner + 2].reshape(1, 1, 4) if boxed else np.zeros((1, 1, 4), np.float32)
    outside = np.ones(len(row), bool)
    outside[corner : corner + 2] = not boxed
    blank = labels.copy()
    blank[:, ~outside] = EMPTY  # the number of slots stays
    valid = bool((blank != EMPTY).any())
    return {
        "point_labels": blank,
        "boxes": box,
        "point_valid": np.array([[valid]]),
        "boxes_valid": np.array([[boxed]]),
    }


class BundleSegmenter(SemanticPredictor):
    """A SemanticPredictor over an artifact."""

    def __init__(self, bundle: Bundle, runners: dict[str, Runner]) -> None:
        self.bundle = bundle
        interface = interface_from(bundle.manifest["contract"])
        assert isinstance(interface, SegmenterInterface)
        self.interface = interface
        self.image_size, self.classes = interface.image_size, interface.classes
        self.runners = runners
        self._run = runners[SEGMENTER]

    @property
    def has_logits(self) -> bool:
        return not self.interface.argmax

    def infer(self, image: FloatArray) -> FloatArray:
        return self._run({"image": self._fed(image)})["logits"]

    def infer_map(self, image: FloatArray) -> NDArray[Any]:
        return super().infer_map(image) if self.has_logits else self._run({"image": self._fed(image)})["class_map"]

    def _fed(self, image: FloatArray) -> NDArray[Any]:
        """What the artifact takes: with normalisation inside, the bytes that the picture was normalised from."""
        if not self.interface.embed_preprocess:
            return image
        mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
        pixels: NDArray[Any] = np.rint(image * std + mean).astype(np.uint8).transpose(0, 2, 3, 1)
        return pixels

    @property
    def executed(self) -> str:
        """What ran the artifact, with its version."""
        return self._run.description
