"""Target names and where their classes live; a class is imported when it is asked for. Plug-ins add to them."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any

from edgesam_deploy import plugins
from edgesam_deploy.errors import EdgeSamDeployError, UnknownName, UsageError
from edgesam_deploy.targets.base import Target

TARGETS: dict[str, str] = {
    "onnx": "edgesam_deploy.targets.onnx:OnnxTarget",
    "openvino": "edgesam_deploy.targets.openvino:OpenvinoTarget",
    "npu": "edgesam_deploy.targets.npu:NpuTarget",
    "qnn": "edgesam_deploy.targets.qnn.target:QnnTarget",
    "tflite": "edgesam_deploy.targets.tflite:TfliteTarget",
    "tensorrt": "edgesam_deploy.targets.tensorrt.target:TensorrtTarget",
    "coreml": "edgesam_deploy.targets.coreml.target:CoremlTarget",
}


def target_names() -> list[str]:
    """The targets here, those of plug-ins last."""
    return [*TARGETS, *(name for name in plugins.plugins(plugins.TARGETS) if name not in TARGETS)]


def target_class(name: str) -> type[Target]:
    """The class of a target. Raises UnknownName, which lists the closest names; EdgeSamDeployError for a plug-in that
    is none.
    """
    if name not in target_names():
        raise UnknownName("target", name, target_names())
    if name not in TARGETS:
        return _of_plugin(name)
    module, _, attribute = TARGETS[name].partition(":")
    found: type[Target] = getattr(import_module(module), attribute)
    return found


def _of_plugin(name: str) -> type[Target]:
    found = plugins.load_plugin(plugins.TARGETS, name)
    if not (isinstance(found, type) and issubclass(found, Target) and found.name == name):
        raise EdgeSamDeployError(f"the plug-in {name} is not a Target whose name is {name!r}; repair or uninstall it")
    return found


def make_target(name: str, **options: Any) -> Target:
    """A target with its options. Raises UnknownName or UsageError naming the option."""
    cls = target_class(name)
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(f"target {name} has no option {unknown[0]!r}; options: {', '.join(sorted(known))}")
    return cls(**options)
