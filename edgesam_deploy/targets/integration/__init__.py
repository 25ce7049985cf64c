"""Files that help an app use a bundle, written into its folder ``integration`` from the manifest and hashed with it.

    edgesam_deploy.hpp   the host's part in C++17, without dependencies: preprocessing, prompt slots, positional
                         encoding, choice of the mask, post-processing
    main.cpp             an example for ONNX Runtime's C++ API
    README.md            what is there, or why there is no header

The templates lie beside this module, one per piece; ``$name`` is filled in, and a name that nothing fills is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
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
    interface_from,
)
from edgesam_deploy.model.semantic import IMAGENET_MEAN, IMAGENET_STD

FOLDER = "integration"
HEADER, EXAMPLE, README = "edgesam_deploy.hpp", "main.cpp", "README.md"
Values = Mapping[str, str]


def write_integration(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the bundle's ``integration`` folder from the content of its manifest. The same content, the same bytes."""
    place = folder / FOLDER
    place.mkdir()
    for name, text in integration_files(manifest).items():
        (place / name).write_text(text, encoding="utf-8")


def integration_files(manifest: Mapping[str, Any]) -> dict[str, str]:
    """File name -> content. README.md alone, which says why, where the header does not cover the artifact."""
    interface = interface_from(manifest["contract"])
    values = _values(manifest, interface)
    reason = _uncovered(manifest, interface)
    if reason is not None:
        return {README: _filled(("readme_head.md", "readme_refused.md"), {**values, "reason": reason})}
    pieces = _pieces(manifest, interface)
    written = {HEADER: _filled(("picture.hpp", *(f"{piece}.hpp" for piece in pieces), "end.hpp"), values)}
    readme = ["readme_head.md", "readme_header.md", *(f"readme_{piece}.md" for piece in pieces)]
    main = {"prompts": "prompt_main.cpp", "segmenter": "class_main.cpp"}.get(pieces[-1])
    if main is not None and all(entry["file"].endswith(".onnx") for entry in manifest["parts"].values()):
        written[EXAMPLE] = _filled(("runtime.cpp", main), values)
        readme.append("readme_example.md")
    return {**written, README: _filled(readme, values)}


def _pieces(manifest: Mapping[str, Any], interface: Interface | SegmenterInterface) -> list[str]:
    if isinstance(interface, SegmenterInterface):
        return ["segmenter"]
    return ["encoder", "prompts"] if len(manifest["parts"]) > 1 else ["encoder"]


def _uncovered(manifest: Mapping[str, Any], interface: Interface | SegmenterInterface) -> str | None:
    """Why the header would be wrong for this artifact, or None."""
    if isinstance(interface, Interface) and interface.io in ("sam", "edgesam-dyt"):
        return f"apps that speak --io {interface.io} have host code of their own, and part of it is in the graph"
    promptable = len(manifest["parts"]) > 1
    for name, part in interface.parts(promptable=promptable).items():
        entry = manifest["parts"][name]
        for side, specs in (("inputs", part.inputs), ("outputs", part.outputs)):
            for written, spec in zip(entry[side], describe_tensors(specs), strict=True):
                if any(written[key] != spec[key] for key in ("name", "shape", "dtype")):
                    return f"{written['name']} of {entry['file']} is not as the contract has it"
    return None


def _values(manifest: Mapping[str, Any], interface: Interface | SegmenterInterface) -> dict[str, str]:
    """Everything that a template may name."""
    contract, parts = manifest["contract"], manifest["parts"]
    first = parts[SEGMENTER if isinstance(interface, SegmenterInterface) else IMAGE_ENCODER]
    values = {
        "title": f"{manifest['model']['name']} for {manifest['target']}",
        "version": manifest["edgesam_deploy"],
        "image": first["inputs"][0]["name"],
        "encoder_file": first["file"],
        "image_size": str(interface.image_size),
        "embeds_preprocess": _flag(interface.embed_preprocess),
        "normalised": "padded" if interface.embed_preprocess else "normalised, zero-padded",
        "pixel_mean": _floats(contract["pixel_mean"]),
        "pixel_std": _floats(contract["pixel_std"]),
        "parts": "\n".join(_part(parts[name]) for name in interface.parts(promptable=len(parts) > 1)),  # as they run
    }
    if isinstance(interface, SegmenterInterface):
        return {**values, **_class_values(interface)}
    return {**values, **_prompt_values(interface, contract)}


def _prompt_values(interface: Interface, contract: Mapping[str, Any]) -> dict[str, str]:
    fixed = interface.points != DYNAMIC
    encodes = interface.io == "edgesam-npu"
    return {
        "slots": str(interface.points) if fixed else "0",
        "slots_said": f"{interface.points} slots" if fixed else "slots",
        "batch": "0" if interface.batch == DYNAMIC else str(interface.batch),
        "empty_slots": _flag(interface.empty_slots),
        "mask_input": _flag(interface.mask_input),
        "encodes_positions": _flag(encodes),
        "positions": "point_embedding_pe" if encodes else "point_coords",
        "positions_said": "here" if encodes else "not here",
        "position_size": str(interface.embed_dim),
        "position_file": f"{PE_MATRIX}.bin" if encodes else "",
        "masks": str(interface.mask_count),
        "mask_threshold": _floats([contract["mask_threshold"]]),
        "usage": "OUT.pgm x,y[,label].. [x0,y0,x1,y1]",
    }


def _class_values(interface: SegmenterInterface) -> dict[str, str]:
    return {
        "classes": str(interface.classes),
        "argmax": _flag(interface.argmax),
        "imagenet_mean": _floats(IMAGENET_MEAN),
        "imagenet_std": _floats(IMAGENET_STD),
        "usage": "OUT.pgm",
    }


def _part(entry: Mapping[str, Any]) -> str:
    """One row of the example's table of parts."""
    inputs, outputs = (", ".join(_quoted(t["name"]) for t in entry[side]) for side in ("inputs", "outputs"))
    return f"    {{{_quoted(entry['file'])}, {{{inputs}}}, {{{outputs}}}}},"


def _quoted(text: str) -> str:
    """A C++ string literal; JSON escapes the same characters."""
    return json.dumps(text)


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _floats(values: Iterable[float]) -> str:
    return ", ".join(f"{float(value)!r}f" for value in values)


def _filled(templates: Iterable[str], values: Values) -> str:
    room = files(__name__) / "templates"
    texts = ((room / f"{name}.in").read_text(encoding="utf-8") for name in templates)
    return "".join(Template(text).substitute(values) for text in texts)
