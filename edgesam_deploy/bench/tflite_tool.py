"""Latency by LiteRT's own benchmark_model, which the user gives: for devices without Python, Android above all."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgesam_deploy.bench.by_tool import Progress, Stages, measure_by_tool
from edgesam_deploy.bench.measure import named_bundles
from edgesam_deploy.bench.settings import Settings
from edgesam_deploy.bundle import Bundle
from edgesam_deploy.devices import Device
from edgesam_deploy.errors import EdgeSamDeployError, UsageError
from edgesam_deploy.targets.signatures import DECODE, ENCODE, SEGMENT

TOOL = "benchmark_model"
NUMBER = r"([-+\d.eE]+)"


def parse_benchmark_model(text: str) -> dict[str, Any]:
    """A row of milliseconds from what the tool prints. Its quantiles are None where its version gives none.

    Raises EdgeSamDeployError where it gave no figures.
    """
    total = re.search(
        rf"Inference timings in us: Init: {NUMBER}, First inference: {NUMBER}, "
        rf"Warmup \(avg\): {NUMBER}, Inference \(avg\): {NUMBER}",
        text,
    )
    counts = re.findall(r"count=\d+ .*", text)
    if total is None or not counts:
        said = [line for line in text.splitlines() if "ERROR" in line] or text.strip().splitlines() or ["nothing"]
        raise EdgeSamDeployError(f"{TOOL} gave no figures; it said: {said[-1].strip()}")
    init, first, _, mean = (float(value) / 1e3 for value in total.groups())
    pairs = {key: float(value) for key, value in re.findall(rf"(\w+)={NUMBER}", counts[-1])}  # the last is no warm-up
    only = pairs.get("curr", 1e3 * mean)  # of equal values, or a single one, it prints no more
    memory = re.search(rf"Overall peak memory footprint \(MB\).*?:\s*{NUMBER}", text)
    return {
        "runs": int(pairs["count"]), "first": first, "mean": mean, "min": pairs.get("min", only) / 1e3,
        "max": pairs.get("max", only) / 1e3, "p50": _thousandth(pairs, "median"), "p90": None, "p99": None,
        "std": pairs.get("std", 0.0) / 1e3, "cpu": None, "times": [], "load_ms": init,
        "peak_memory_mb": float(memory[1]) if memory else None,
    }  # fmt: skip


def _thousandth(pairs: Mapping[str, float], key: str) -> float | None:
    return pairs[key] / 1e3 if key in pairs else None


def signatures(bundle: Bundle) -> list[tuple[str, str, str]]:
    """(stage, file, signature) of each function of a .tflite bundle. Raises UsageError for another bundle."""
    found = []
    for part, entry in bundle.manifest["parts"].items():
        if not entry["file"].endswith(".tflite"):
            raise UsageError(f"{bundle.path}: --benchmark-model runs .tflite files, not {entry['file']}")
        labels = next((t["shape"][1] for t in entry["inputs"] if t["name"] == "point_labels"), None)
        if labels is not None:
            found.append((f"decoder, {labels} slots", entry["file"], f"{DECODE}_{labels}"))
        elif part == "segmenter":
            found.append(("segmenter", entry["file"], SEGMENT))
        else:
            found.append(("encoder", entry["file"], ENCODE))
    return found


def measure_with_tool(
    device: Device,
    paths: Sequence[str | Path],
    settings: Settings,
    tool: Path,
    *,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """As ``measure`` gives it, of the parts alone, on random inputs; within the device's block.

    Raises UsageError for a bundle without .tflite files or a tool that is no file.
    """
    if not tool.is_file():
        raise UsageError(f"--benchmark-model {tool}: no such file; LiteRT's sources build it")
    named = named_bundles(paths)
    wanted = {name: signatures(bundle) for name, bundle in named.items()}
    files = {TOOL: tool}
    stages: dict[str, Stages] = {}
    for index, (name, bundle) in enumerate(named.items()):
        files |= {f"{index}.{file}": bundle.path / file for _, file, _ in wanted[name]}
        stages[name] = [
            (stage, partial(_run, device, f"{index}.{file}", signature, settings))
            for stage, file, signature in wanted[name]
        ]
    return measure_by_tool(
        device, named, settings, files, stages,
        executed=f"{TOOL}, given by the user",
        prepare=lambda: device.ran(f"chmod 755 {shlex.quote(device.folder)}/{TOOL}"),
        progress=progress,
    )  # fmt: skip


def _run(device: Device, file: str, signature: str, settings: Settings) -> dict[str, Any]:
    threads = [f"--num_threads={settings.threads}"] if settings.threads else []
    words = [
        f"./{TOOL}", f"--graph={file}", f"--signature_to_run_for={signature}", f"--warmup_runs={settings.warmup}",
        f"--num_runs={settings.runs}", f"--min_secs={settings.seconds or 0}", "--report_peak_memory_footprint=true",
        *threads,
    ]  # fmt: skip
    lines: list[str] = []
    _, said = device.run(words, lines.append)
    return parse_benchmark_model("\n".join([*lines, said]))
