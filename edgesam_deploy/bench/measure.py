"""Latency of bundles on this machine: several take turns in one run, so that their ratios mean something."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_deploy import __version__
from edgesam_deploy.bench.cold import cold_start
from edgesam_deploy.bench.settings import DEFAULT, Settings
from edgesam_deploy.bench.stages import Stage, stages
from edgesam_deploy.bundle import Bundle, open_bundle
from edgesam_deploy.devices import LocalDevice
from edgesam_deploy.devices.runner import cpu_model, interleave, merged, milliseconds, peak_rss_mb, summary
from edgesam_deploy.errors import EdgeSamDeployError, UsageError
from edgesam_deploy.parity.cases import seeded_scene
from edgesam_deploy.runtime import BundlePredictor, BundleSegmenter, open_artifact
from edgesam_deploy.toolkits import installed_version

SCHEMA = 2
AGAIN = " again (A/A)"
AGAIN_TOLERANCE = 0.05
PACKAGES = ("numpy", "onnxruntime", "openvino", "ai-edge-litert", "coremltools", "tensorrt", "onnxruntime-qnn")
Progress = Callable[[str], None]


def measure(
    paths: Sequence[str | Path], settings: Settings = DEFAULT, *, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """The content of bench.json (docs/devices.md) for the bundles in ``paths``.

    Of several bundles the first is the baseline: it is loaded twice, and where its second copy's ratio (A/A) leaves
    1 +- 0.05 the machine was too busy for a verdict. Raises BundleError, MissingToolkit and UsageError.
    """
    named = named_bundles(paths)
    state = LocalDevice().state()
    rows = {name: described(bundle) for name, bundle in named.items()}
    failed = _started_cold(named, settings, rows, progress)
    opened = _opened(named, settings, rows)  # what is wrong with a bundle shows better here than in another process
    if failed is not None:
        raise failed
    found = {name: stages(artifact, seeded_scene(1), settings) for name, artifact in opened.items()}
    for name in named:
        rows[name]["skipped"] = found[name][1]
    ratios = _timed({name: entry[0] for name, entry in found.items()}, rows, settings, progress)
    for name in named:
        rows[name]["stages"] += _device_rows(opened[name], settings)
    return {
        **circumstances(settings),
        "state_before": state,
        "state_after": LocalDevice().state(),
        "peak_rss_mb": peak_rss_mb(),
        "bundles": list(rows.values()),
        "ratios": ratios,
    }


def named_bundles(paths: Sequence[str | Path]) -> dict[str, Bundle]:
    """The bundles by the path they were asked for with. Raises UsageError for one that is asked for twice."""
    found = {str(path): open_bundle(path) for path in paths}
    if len(found) < len(paths):
        raise UsageError("a bundle is named twice; the first one is measured twice in any case (A/A)")
    return found


def circumstances(settings: Settings, device: str = "local") -> dict[str, Any]:
    """Where, when, with what and how: the head of a result. ``complete`` until something says otherwise."""
    return {
        "schema": SCHEMA,
        "device": device,
        "complete": True,
        "date": time.strftime("%Y-%m-%d"),
        "edgesam_deploy": __version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "cpu": cpu_model(),
        "versions": {
            "python": platform.python_version(),
            **{package: number for package in PACKAGES if (number := installed_version(package))},
        },
        "settings": settings.json(),
    }


def described(bundle: Bundle) -> dict[str, Any]:
    """What a result says of a bundle before anything is measured."""
    manifest = bundle.manifest
    return {
        "name": str(bundle.path),
        "model": manifest["model"]["name"],
        "target": bundle.target,
        "precision": manifest["options"].get("precision", "fp32"),
        "weights": manifest["weights"]["source"],
        "manifest_sha256": manifest.get("manifest_sha256"),
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
        "stages": [],
        "skipped": [],
    }


def _started_cold(
    named: Mapping[str, Bundle], settings: Settings, rows: dict[str, dict[str, Any]], progress: Progress
) -> EdgeSamDeployError | None:
    for name, bundle in named.items() if settings.cold else ():
        progress(f"cold start: {name}")
        try:
            rows[name]["cold"] = cold_start(bundle.path, settings.provider, settings.threads)
        except EdgeSamDeployError as e:
            return e
    return None


def _opened(
    named: Mapping[str, Bundle], settings: Settings, rows: dict[str, dict[str, Any]]
) -> dict[str, BundlePredictor | BundleSegmenter]:
    """Every bundle in memory; the baseline twice where there is something to compare it with."""
    opened = {}
    for name, bundle in named.items():

        def load(name: str = name, bundle: Bundle = bundle) -> None:
            opened[name] = open_artifact(bundle.path, settings.provider, settings.threads)

        rows[name]["load_ms"] = milliseconds(load)[0]
        rows[name]["executed"] = opened[name].executed
    if len(named) > 1:
        first = next(iter(named))
        opened[first + AGAIN] = open_artifact(named[first].path, settings.provider, settings.threads)
    return opened


def _timed(
    found: Mapping[str, Sequence[Stage]], rows: dict[str, dict[str, Any]], settings: Settings, progress: Progress
) -> list[dict[str, Any]]:
    """Fill ``rows`` with every stage, and give the ratios to the first bundle."""
    ratios = []
    baseline = next(iter(found))
    for stage in merged([stage.name for stage in entry] for entry in found.values()):
        progress(stage)
        turns = {name: s for name, entry in found.items() for s in entry if s.name == stage}
        few = max((s.runs or 0 for s in turns.values()), default=0)
        times = interleave(
            {name: s.call for name, s in turns.items()},
            warmup=0 if few else settings.warmup,
            runs=min(few, settings.runs) if few else settings.runs,
            seconds=None if few else settings.seconds,
        )
        for name, s in turns.items():
            if name in rows:
                row = summary(stage, times[name]["first"], times[name]["wall"], times[name]["cpu"])
                rows[name]["stages"].append({**row, "prompts": s.prompts})
        if baseline in times:
            walls = {name: entry["wall"] for name, entry in times.items()}
            ratios += [ratio(stage, name, walls[name], walls[baseline]) for name in walls if name != baseline]
    return ratios


def ratio(stage: str, name: str, times: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles over the rounds of (time / the baseline's time of the same round)."""
    low, median, high = (float(q) for q in np.quantile(np.divide(times, baseline), [0.25, 0.5, 0.75]))
    return {"stage": stage, "bundle": name, "rounds": len(times), "median": median, "low": low, "high": high}


def trusted(result: Mapping[str, Any], stage: str) -> bool:
    """Whether the baseline's second copy took as long as the first in this stage."""
    return any(
        row["stage"] == stage and row["bundle"].endswith(AGAIN) and abs(row["median"] - 1) <= AGAIN_TOLERANCE
        for row in result["ratios"]
    )


def _device_rows(artifact: BundlePredictor | BundleSegmenter, settings: Settings) -> list[dict[str, Any]]:
    """Where a runtime tells copies from computing: each by the device's own clock, of the inputs it had last."""
    return [
        {**summary(f"{part}: {stage}", times[0], times), "prompts": 1}
        for part, runner in artifact.runners.items()
        if hasattr(runner, "device_latency")
        for stage, times in runner.device_latency(settings.warmup, settings.runs).items()
    ]
