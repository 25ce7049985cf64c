"""What this machine has: for people who ask why a target does not build."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from edgesam_deploy import __version__
from edgesam_deploy.errors import EdgeSamDeployError
from edgesam_deploy.targets import target_class, target_names
from edgesam_deploy.toolkits import EXTRAS, how_to_get, installed_version, is_installed

PATIENCE = 120  # seconds for one import; the heaviest toolkit takes some ten


class Package(NamedTuple):
    """A distribution, the module that shows whether it works, and the extra that installs it (None: no extra)."""

    purpose: str
    name: str
    module: str
    extra: str | None


PACKAGES = (
    Package("building", "torch", "torch", "torch"),
    Package("building", "onnxscript", "onnxscript", "torch"),
    Package("checkpoints", "safetensors", "safetensors", "torch"),
    Package("downloading checkpoints", "huggingface_hub", "huggingface_hub", "torch"),
    Package("onnx", "onnx", "onnx", None),
    Package("onnx", "onnx-ir", "onnx_ir", None),
    Package("running onnx", "onnxruntime", "onnxruntime", None),
    Package("openvino", "openvino", "openvino", "openvino"),
    Package("coreml", "coremltools", "coremltools", "coreml"),
    Package("tflite", "litert-torch", "litert_torch", "tflite"),
    Package("tflite, 8 bit", "ai-edge-quantizer", "ai_edge_quantizer", "tflite"),
    Package("running tflite", "ai-edge-litert", "ai_edge_litert.interpreter", "tflite"),
    Package("qnn", "onnxruntime-qnn", "onnxruntime_qnn", "qnn"),
    Package("tensorrt engines", "tensorrt", "tensorrt", "tensorrt"),
    Package("training", "webdataset", "webdataset", "train"),
    Package("COCO run lengths", "pycocotools", "pycocotools.mask", "train"),
    Package("demo", "gradio", "gradio", "demo"),
)

# a process of its own: what is installed and broken may take the interpreter with it
_TRY = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        why = ""
    except BaseException as e:
        why = f"{type(e).__name__}: {e}".splitlines()[0]
    print("\\n" + json.dumps([name, why]), flush=True)
"""


def examine(*, imports: bool = True) -> dict[str, Any]:
    """Machine facts; one row per package: what for, version or None, whether it can be imported (None: not tried), why
    not, how to install it; one row per target: what is missing to build for it and to run its artifacts here.

    ``imports=False`` leaves the imports out, which take seconds where PyTorch and the vendors' toolkits are installed.
    """
    versions = {package.name: installed_version(package.name) for package in PACKAGES}
    present = [package for package in PACKAGES if versions[package.name]]
    faults = import_faults([package.module for package in present]) if imports else {}
    rows = [
        {
            "for": package.purpose,
            "package": package.name,
            "version": versions[package.name],
            "usable": None if package not in present or not imports else not faults[package.module],
            "fault": faults.get(package.module, ""),
            "install": how_to_get(package.extra) if package.extra else "pip install edgesam-deploy",
        }
        for package in PACKAGES
    ]
    return {"machine": _machine(), "packages": rows, "targets": _targets()}


def import_faults(modules: Sequence[str]) -> dict[str, str]:
    """Why each module cannot be imported, "" where it can. One interpreter tries them all, a new one the rest where it
    dies of one.
    """
    found: dict[str, str] = {}
    while left := [module for module in modules if module not in found]:
        command = [sys.executable, "-c", _TRY, *left]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE * len(left))
            output, fault = done.stdout, f"the interpreter died (exit status {done.returncode})"
        except subprocess.TimeoutExpired as e:
            output = e.stdout.decode("utf-8", "replace") if isinstance(e.stdout, bytes) else (e.stdout or "")
            fault = "importing it does not end"
        found |= dict(json.loads(line) for line in output.splitlines() if line.startswith('["'))
        if stopped := [module for module in left if module not in found]:
            found[stopped[0]] = fault
    return found


def _targets() -> list[dict[str, Any]]:
    """One row per target; a plug-in that does not load says so where others say how to install what is missing."""
    rows = []
    for name in target_names():
        try:
            cls = target_class(name)
        except EdgeSamDeployError as e:
            row = {"missing_to_build": ["a working plug-in"], "missing_to_run": ["a working plug-in"]}
            rows.append({"target": name, **row, "install": str(e)})
            continue
        build, run = (
            [module for module in needed if not is_installed(module)] for needed in (cls.toolkits, cls.runtime)
        )
        rows.append(
            {"target": name, "missing_to_build": build, "missing_to_run": run, "install": _install(*build, *run)}
        )
    return rows


def _install(*missing: str) -> str:
    """The command that brings the last of ``missing``, which is the most special and brings the others along."""
    if not missing:
        return ""
    extra = EXTRAS.get(missing[-1])
    return how_to_get(extra) if extra else f"pip install {missing[-1]}"


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
