"""What ``build_engine.py`` and trtexec need to know of a bundle: files, inputs, optimisation profiles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesam_deploy.contract import Interface, PartSpec, SegmenterInterface, TensorSpec
from edgesam_deploy.errors import UsageError
from edgesam_deploy.targets.tensorrt.build_engine import RECIPE, SCHEMA

Range = tuple[int, int, int]  # least, usual, most
MOST = 1024  # what the contract allows of points and of prompts


def parse_range(option: str, text: str) -> Range:
    """``1,6,64`` as numbers. Raises UsageError unless they are three in rising order, 1 to 1024."""
    try:
        least, usual, most = (int(number) for number in text.split(","))
    except ValueError as e:
        raise UsageError(f"--{option} {text}: must be three numbers, least, usual, most: 1,6,64") from e
    if not 1 <= least <= usual <= most <= MOST:
        raise UsageError(f"--{option} {text}: must rise from at least 1 to at most {MOST}")
    return least, usual, most


def profiles(inputs: Sequence[TensorSpec], ranges: Mapping[str, Range]) -> dict[str, dict[str, list[int]]]:
    """Least, usual and greatest shape of each input with a dynamic axis, by name. ranges: by the axis's symbol."""
    return {
        spec.name: {
            end: list(spec.bound({symbol: ranges[symbol][i] for symbol in spec.dynamic.values()}))
            for i, end in enumerate(("min", "opt", "max"))
        }
        for spec in inputs
        if spec.dynamic
    }


def trtexec(file: str, shapes: Mapping[str, Mapping[str, Sequence[int]]], major: int) -> str:
    """The command that builds the same engine with NVIDIA's own tool, of that TensorRT major."""
    words = ["trtexec", f"--onnx={file}"]
    words += ["--stronglyTyped"] if major < 11 else []  # TensorRT 11 knows no other networks
    words += ["--noTF32", f"--saveEngine={Path(file).stem}.engine", "--timingCacheFile=timing.cache", "--skipInference"]
    for end in ("min", "opt", "max") if shapes else ():
        given = ",".join(f"{name}:{'x'.join(map(str, ends[end]))}" for name, ends in shapes.items())
        words.append(f"--{end}Shapes={given}")
    return " ".join(words)


def write_recipe(
    folder: Path,
    interface: Interface | SegmenterInterface,
    parts: Mapping[str, PartSpec],
    ranges: Mapping[str, Range],
    *,
    major: int,
    precision: Mapping[str, str],
) -> None:
    """``build_engine.json``, beside the files that it speaks of."""
    described = {}
    for name, part in parts.items():
        shapes = profiles(part.inputs, ranges)
        file = f"{part.file}.onnx"
        described[name] = {
            "file": file, "inputs": [spec.name for spec in part.inputs], "outputs": [s.name for s in part.outputs],
            "profiles": shapes, "precision": precision[name], "trtexec": trtexec(file, shapes, major),
        }  # fmt: skip
    content = {"schema": SCHEMA, "tensorrt": major, "parts": described}
    (folder / RECIPE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def readme_section(recipe: Mapping[str, Any]) -> str:
    """What the model card says of building engines."""
    major = recipe["tensorrt"]
    lines = "\n".join(part["trtexec"] for part in recipe["parts"].values())
    return (
        f"\n## Building the engines (TensorRT {major})\n\n"
        "The `.onnx` files are strongly typed: each value has the type it is computed in, so no precision flag is "
        "needed, or allowed.\nOn the machine that will run them, with nothing installed but TensorRT:\n\n"
        f"```\npython build_engine.py\n```\n\nor, with NVIDIA's own tool:\n\n```\n{lines}\n```\n"
    )
