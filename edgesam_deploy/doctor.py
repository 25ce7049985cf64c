"""What this machine has: for people who ask why a target does not build."""

from __future__ import annotations

import os
import platform
from typing import Any

from edgesam_deploy import __version__
from edgesam_deploy.toolkits import installed_version

PACKAGES = (
    ("building", "torch", "torch"), ("building", "onnxscript", "torch"), ("checkpoints", "safetensors", "torch"),
    ("downloading checkpoints", "huggingface_hub", "torch"), ("onnx", "onnx", None), ("onnx", "onnx-ir", None),
    ("running onnx", "onnxruntime", None), ("coreml", "coremltools", "coreml"), ("tflite", "litert-torch", "tflite"),
    ("running tflite", "ai-edge-litert", "tflite"), ("qnn", "onnxruntime-qnn", "qnn"),
    ("tensorrt", "tensorrt", "tensorrt"), ("training", "webdataset", "train"),
    ("COCO run lengths", "pycocotools", "train"), ("demo", "gradio", "demo"),
)  # fmt: skip


def examine() -> dict[str, Any]:
    """Machine facts and one row per package: what for, version or None, how to install it."""
    rows = [
        {
            "for": purpose,
            "package": package,
            "version": installed_version(package),
            "install": f"pip install 'edgesam-deploy[{extra}]'" if extra else "pip install edgesam-deploy",
        }
        for purpose, package, extra in PACKAGES
    ]
    return {"machine": _machine(), "packages": rows}


def _machine() -> dict[str, str]:
    from edgesam_deploy.model.fetch import cache_folder

    facts = {
        "edgesam-deploy": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "checkpoint cache": str(cache_folder()),
    }
    if installed_version("onnxruntime"):
        facts["onnxruntime providers"] = _providers()
    return facts


def _providers() -> str:
    try:
        import onnxruntime
    except ImportError as e:  # installed and broken is what a doctor is asked about
        return f"none: onnxruntime cannot be imported ({e})"
    return ", ".join(onnxruntime.get_available_providers())
