"""What every language's generator reads: a bundle's manifest, its interface, and the values that templates name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from edgesam_deploy.contract import (
    DYNAMIC,
    IMAGE_ENCODER,
    PE_MATRIX,
    SEGMENTER,
    Interface,
    SegmenterInterface,
    describe_tensors,
)
from edgesam_deploy.model.semantic import IMAGENET_MEAN, IMAGENET_STD

STATIC = (".tflite", ".mlpackage")  # kinds of files whose code counts on fixed shapes
Values = Mapping[str, str]


@dataclass(frozen=True)
class Artifact:
    """A bundle as its manifest has it."""

    manifest: Mapping[str, Any]
    interface: Interface | SegmenterInterface

    @property
    def parts(self) -> Mapping[str, Any]:
        return self.manifest["parts"]  # type: ignore[no-any-return]

    @property
    def first(self) -> Mapping[str, Any]:
        """The part that takes the picture."""
        return self.parts[SEGMENTER if self.semantic else IMAGE_ENCODER]  # type: ignore[no-any-return]

    @property
    def semantic(self) -> bool:
        return isinstance(self.interface, SegmenterInterface)

    @property
    def pieces(self) -> list[str]:
        """The templates that the artifact needs beyond those of pictures."""
        if self.semantic:
            return ["segmenter"]
        return ["encoder", "prompts"] if len(self.parts) > 1 else ["encoder"]

    @property
    def kind(self) -> str:
        """The end of the name of its files."""
        return Path(self.first["file"]).suffix

    @property
    def title(self) -> str:
        return f"{self.manifest['model']['name']} for {self.manifest['target']}"

    @property
    def version(self) -> str:
        return str(self.manifest["edgesam_deploy"])

    @property
    def files(self) -> str:
        """The names of the files that an app needs, for a sentence."""
        encodes = isinstance(self.interface, Interface) and self.interface.io == "edgesam-npu"
        names = [entry["file"] for entry in self.parts.values()] + ([f"{PE_MATRIX}.bin"] if encodes else [])
        return " and ".join(f"`{name}`" for name in dict.fromkeys(names))

    def values(self, suffix: str) -> dict[str, str]:
        """Everything that a template of any language may name; ``suffix`` is that of a float."""
        contract, interface = self.manifest["contract"], self.interface
        found = {
            "title": self.title,
            "version": self.version,
            "files": self.files,
            "image": self.first["inputs"][0]["name"],
            "encoder_file": self.first["file"],
            "image_size": str(interface.image_size),
            "embeds_preprocess": flag(interface.embed_preprocess),
            "normalised": "padded" if interface.embed_preprocess else "normalised, zero-padded",
            "pixel_mean": floats(contract["pixel_mean"], suffix),
            "pixel_std": floats(contract["pixel_std"], suffix),
        }
        if isinstance(interface, SegmenterInterface):
            return {**found, **_class_values(interface, suffix)}
        return {**found, **_prompt_values(interface, contract, suffix)}


def _prompt_values(interface: Interface, contract: Mapping[str, Any], suffix: str) -> dict[str, str]:
    fixed = interface.points != DYNAMIC
    encodes = interface.io == "edgesam-npu"
    return {
        "slots": str(interface.points) if fixed else "0",
        "slots_said": f"{interface.points} slots" if fixed else "slots",
        "batch": "0" if interface.batch == DYNAMIC else str(interface.batch),
        "empty_slots": flag(interface.empty_slots),
        "mask_input": flag(interface.mask_input),
        "encodes_positions": flag(encodes),
        "positions": "point_embedding_pe" if encodes else "point_coords",
        "positions_said": "here" if encodes else "not here",
        "position_size": str(interface.embed_dim),
        "position_file": f"{PE_MATRIX}.bin" if encodes else "",
        "masks": str(interface.mask_count),
        "mask_threshold": floats([contract["mask_threshold"]], suffix),
        "usage": "OUT.pgm x,y[,label].. [x0,y0,x1,y1]",
    }


def _class_values(interface: SegmenterInterface, suffix: str) -> dict[str, str]:
    return {
        "classes": str(interface.classes),
        "argmax": flag(interface.argmax),
        "imagenet_mean": floats(IMAGENET_MEAN, suffix),
        "imagenet_std": floats(IMAGENET_STD, suffix),
        "usage": "OUT.pgm",
    }


def uncovered(artifact: Artifact) -> str | None:
    """Why generated code would be wrong for this artifact, or None."""
    interface = artifact.interface
    if isinstance(interface, Interface) and interface.io in ("sam", "edgesam-dyt"):
        return f"apps that speak --io {interface.io} have host code of their own, and part of it is in the graph"
    if artifact.kind in STATIC and isinstance(interface, Interface) and DYNAMIC in (interface.points, interface.batch):
        return "its shapes vary from call to call"
    if artifact.kind == ".mlpackage":
        reason = _beyond_swift(artifact)
        if reason is not None:
            return reason
    for name, part in interface.parts(promptable=len(artifact.parts) > 1).items():
        entry = artifact.parts[name]
        for side, specs in (("inputs", part.inputs), ("outputs", part.outputs)):
            for written, spec in zip(entry[side], describe_tensors(specs), strict=True):
                if not _as_declared(written, spec, artifact.kind):
                    return f"{written['name']} of {entry['file']} is not as the contract has it"
    return None


def _beyond_swift(artifact: Artifact) -> str | None:
    """What Core ML's packages may have and the generated Swift does not know."""
    if artifact.interface.embed_preprocess:
        return f"{artifact.first['file']} takes a picture (CVPixelBuffer), which the generated Swift does not make"
    names = [entry["file"] for entry in artifact.parts.values()]
    shared = next((name for name in names if names.count(name) > 1), None)
    return shared and f"{shared} holds several functions, between which the generated Swift does not choose"


def _as_declared(written: Mapping[str, Any], spec: Mapping[str, Any], kind: str) -> bool:
    """Whether a file's tensor is the contract's; in TFLite an image may have its channels last."""
    if any(written[key] != spec[key] for key in ("name", "dtype")):
        return False
    shape = spec["shape"]
    last = [1, *shape[2:], 3] if kind == ".tflite" and shape[:2] == [1, 3] and len(shape) == 4 else shape
    return written["shape"] in (shape, last)


def flag(value: bool) -> str:
    return "true" if value else "false"


def floats(values: Iterable[float], suffix: str) -> str:
    return ", ".join(f"{float(value)!r}{suffix}" for value in values)


def filled(templates: Iterable[str], values: Values) -> str:
    """The templates one after another, by their paths without ``.in``."""
    room = files(__package__) / "templates"
    texts = (room.joinpath(*f"{name}.in".split("/")).read_text(encoding="utf-8") for name in templates)
    return "".join(Template(text).substitute(values) for text in texts)
