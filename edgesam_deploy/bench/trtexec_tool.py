"""Latency by NVIDIA's own trtexec, where a device has it: boards with TensorRT and without a Python that knows it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgesam_deploy.bench.by_tool import Progress, Stages, measure_by_tool
from edgesam_deploy.bench.measure import named_bundles
from edgesam_deploy.bench.settings import Settings
from edgesam_deploy.bundle import Bundle
from edgesam_deploy.devices import Device
from edgesam_deploy.errors import EdgeSamDeployError, MissingToolkit, UsageError
from edgesam_deploy.targets.tensorrt.build_engine import RECIPE

TOOL = "trtexec"
BUILDING = ("--onnx", "--saveEngine", "--timingCacheFile", "--skipInference")  # words of the bundle's line that go
NUMBER = r"([-+\d.eE]+)"
FIGURES = {
    "min": "min", "max": "max", "mean": "mean", "p50": "median", "p90": r"percentile\(90%\)",
    "p99": r"percentile\(99%\)",
}  # fmt: skip
WARMUP_MS = 200  # the tool's own default; it warms up by time


def parse_trtexec(text: str) -> dict[str, Any]:
    """A row of milliseconds from what the tool prints: computing on the GPU, without the copies to it and from it.

    ``with_copies`` is the median with them, ``load_ms`` what building the engine took, ``peak_memory_mb`` the device
    memory of its context; None where its version does not say. Raises EdgeSamDeployError where it gave no figures.
    """
    compute = re.findall(r"\] GPU Compute Time: (min = .*)", text)
    if not compute:
        said = re.findall(r"\[E\] (.*)", text) or text.strip().splitlines()[-1:] or ["nothing"]
        raise EdgeSamDeployError(f"{TOOL} gave no figures; it said: {said[0].strip()}")
    runs = _found(rf"Timing trace has {NUMBER} queries", text)
    built = _found(rf"Engine built in {NUMBER} sec", text)
    return {
        "runs": None if runs is None else int(runs), "first": None, "std": None, "cpu": None, "times": [],
        **{name: _found(rf"(?:^|, ){label} = {NUMBER} ms", compute[-1]) for name, label in FIGURES.items()},
        "with_copies": _found(rf"\] Latency: .*median = {NUMBER} ms", text),
        "load_ms": None if built is None else built * 1e3,
        "peak_memory_mb": _found(rf"device memory size: {NUMBER} MiB", text),
    }  # fmt: skip


def _found(pattern: str, text: str) -> float | None:
    found = re.search(pattern, text)
    return float(found[1]) if found else None


def words(line: str, tool: str, file: str, settings: Settings) -> list[str]:
    """The command that builds an engine from ``file`` and times it: the bundle's own ``line``, made to run."""
    kept = [word for word in shlex.split(line)[1:] if not word.startswith(BUILDING)]
    usual = [word.replace("--optShapes", "--shapes") for word in kept if word.startswith("--optShapes")]
    return [
        tool, f"--onnx={file}", *kept, *usual, f"--iterations={settings.runs}", f"--duration={settings.seconds or 0}",
        f"--warmUp={WARMUP_MS if settings.warmup else 0}",
    ]  # fmt: skip


def measure_with_trtexec(
    device: Device,
    paths: Sequence[str | Path],
    settings: Settings,
    tool: str = TOOL,
    *,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """As ``measure`` gives it, of the parts alone, on random inputs, each in an engine built there; within the
    device's block. tool: the program there, by name or path.

    Raises UsageError for a bundle of another target, MissingToolkit where the device has no such program.
    """
    named = named_bundles(paths)
    files: dict[str, Path] = {}
    stages: dict[str, Stages] = {}
    for index, (name, bundle) in enumerate(named.items()):
        parts = _parts(bundle)
        for entry in parts.values():
            file = entry["file"]
            files |= {f"{index}/{beside.name}": beside for beside in sorted(bundle.path.glob(f"{file}*"))}
        stages[name] = [
            (part.removeprefix("image_").removeprefix("mask_"),
             partial(_run, device, words(entry["trtexec"], tool, f"{index}/{entry['file']}", settings)))
            for part, entry in parts.items()
        ]  # fmt: skip
    return measure_by_tool(device, named, settings, files, stages, executed=f"{TOOL} on the device", progress=progress)


def _parts(bundle: Bundle) -> dict[str, Any]:
    if bundle.target != "tensorrt":
        raise UsageError(f"{bundle.path}: --trtexec times bundles for tensorrt, this one is for {bundle.target}")
    parts: dict[str, Any] = bundle.read_json(RECIPE)["parts"]
    return parts


def _run(device: Device, command: Sequence[str]) -> dict[str, Any]:
    lines: list[str] = []
    code, said = device.run(command, lines.append)
    if code == 127:
        raise MissingToolkit(
            f"--trtexec {command[0]}: {device.name} has no such program; give its path there, on a Jetson "
            "/usr/src/tensorrt/bin/trtexec"
        )
    return parse_trtexec("\n".join([*lines, said]))
