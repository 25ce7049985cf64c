"""Vendor toolkits are imported when they are used, through here, so that a missing one is a clear message."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

from edgesam_deploy.errors import MissingToolkit

EXTRAS = {
    "torch": "torch", "onnxscript": "torch", "safetensors": "torch", "huggingface_hub": "torch",
    "coremltools": "coreml", "litert_torch": "tflite", "ai_edge_litert": "tflite",
    "ai_edge_quantizer": "tflite", "flatbuffers": "tflite", "onnxruntime_qnn": "qnn",
    "tensorrt": "tensorrt", "cuda": "tensorrt", "onnx_graphsurgeon": "tensorrt",
    "webdataset": "train", "pycocotools": "train", "tensorboard": "train", "yaml": "train", "gradio": "demo",
    "openvino": "openvino",
}  # fmt: skip

# extras that do not fit beside the others
WHERE = {"demo": " into an environment of its own, for gradio wants an older Pillow; in a clone: make demo"}


def require(module: str, purpose: str) -> ModuleType:
    """Import ``module``. Raises MissingToolkit that says what it is needed for and how to install it."""
    try:
        return import_module(module)
    except ImportError as e:
        extra = EXTRAS.get(module.split(".")[0])
        hint = how_to_get(extra) if extra else f"pip install '{module}'"
        raise MissingToolkit(f"{purpose} needs {module}: {hint} ({e})") from e


def how_to_get(extra: str) -> str:
    """What to type for an extra, and where, if that matters."""
    return f"pip install 'edgesam-deploy[{extra}]'{WHERE.get(extra, '')}"


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def is_installed(module: str) -> bool:
    """Whether ``module`` could be imported, without importing it."""
    return find_spec(module) is not None
