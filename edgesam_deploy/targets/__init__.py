"""Target names and where their classes live; a class is imported when it is asked for."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any

from edgesam_deploy.errors import UnknownName, UsageError
from edgesam_deploy.targets.base import Target

TARGETS: dict[str, str] = {
    "onnx": "edgesam_deploy.targets.onnx:OnnxTarget",
    "npu": "edgesam_deploy.targets.npu:NpuTarget",
    "qnn": "edgesam_deploy.targets.qnn.target:QnnTarget",
    "tflite": "edgesam_deploy.targets.tflite:TfliteTarget",
    "tensorrt": "edgesam_deploy.targets.tensorrt.target:TensorrtTarget",
    "coreml": "edgesam_deploy.targets.coreml.target:CoremlTarget",
}


def target_class(name: str) -> type[Target]:
    """The class of a target. Raises UnknownName, which lists the closest names."""
    if name not in TARGETS:
        raise UnknownName("target", name, TARGETS)
    module, _, attribute = TARGETS[name].partition(":")
    found: type[Target] = getattr(import_module(module), attribute)
    return found


def make_target(name: str, **options: Any) -> Target:
    """A target with its options. Raises UnknownName or UsageError naming the option."""
    cls = target_class(name)
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(f"target {name} has no option {unknown[0]!r}; options: {', '.join(sorted(known))}")
    return cls(**options)
