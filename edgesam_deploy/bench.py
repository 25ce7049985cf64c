"""Latency of a bundle on this machine: per part and end to end. Needs no PyTorch."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_deploy import __version__
from edgesam_deploy.model.semantic import preprocess
from edgesam_deploy.parity import seeded_scene
from edgesam_deploy.runtime import BundlePredictor, BundleSegmenter, open_artifact

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one stage. ``first`` is the first call after loading, the rest are the warm calls."""

    stage: str
    runs: int
    first: float
    mean: float
    min: float
    p50: float
    p90: float
    p99: float
    std: float


def measure_latency(
    path: str | Path,
    *,
    warmup: int = 3,
    runs: int = 20,
    threads: int = 0,
    provider: str = "cpu",
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Stages: load, preprocess, encoder, decoder (one prompt), upscale, and set_image + predict end to end; of a
    semantic model load, preprocess, one run of the network, and a picture resized to its frame end to end.

    Returns the content of bench.json. Figures of one noisy machine: compare bundles by interleaving them in one run.
    """
    start = time.perf_counter()
    predictor = open_artifact(path, provider, threads)
    load = 1e3 * (time.perf_counter() - start)
    scene = seeded_scene(1)
    rows = []
    for stage, call in _stages(predictor, scene).items():
        progress(stage)
        rows.append(_timed(stage, call, warmup, runs))
    rows += _device_rows(predictor, warmup, runs)
    return {
        "schema": 1,
        "load_ms": load,
        "stages": [asdict(row) for row in rows],
        "threads": threads or os.cpu_count(),
        "executed": predictor.executed,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "date": time.strftime("%Y-%m-%d"),
        "edgesam_deploy": __version__,
    }


def _stages(predictor: BundlePredictor | BundleSegmenter, scene: Any) -> dict[str, Callable[[], object]]:
    if isinstance(predictor, BundleSegmenter):
        frame, segmenter = preprocess(scene, predictor.image_size), predictor
        return {
            "preprocess": lambda: preprocess(scene, segmenter.image_size),
            "segmenter": lambda: segmenter.infer_map(frame),
            "end to end": lambda: segmenter.predict(scene, tiles=False),
        }
    predictor.set_image(scene)
    height, width = scene.shape[:2]
    stages: dict[str, Callable[[], object]] = {
        "preprocess": lambda: predictor.preprocess(scene),
        "preprocess + encoder": lambda: predictor.encode(scene),
    }
    if not predictor.has_decoder:
        return stages
    point, label = [[width / 2, height / 2]], [1]
    prompts, _ = predictor.prepared([point], [label])
    logits = predictor.decode(prompts, None).logits
    wanted = logits[:, 1:] if logits.shape[1] > 1 else logits  # --return-single-mask has one

    def end_to_end() -> None:
        predictor.set_image(scene)
        predictor.predict(point, label, num_multimask_outputs=wanted.shape[1])

    return {
        **stages,
        "decoder": lambda: predictor.decode(prompts, None),
        f"upscale {wanted.shape[1]} mask{'s' if wanted.shape[1] > 1 else ''}": lambda: predictor.upscale(wanted),
        "click to masks": lambda: predictor.predict(point, label, num_multimask_outputs=wanted.shape[1]),
        "end to end": end_to_end,
    }


def _device_rows(predictor: BundlePredictor | BundleSegmenter, warmup: int, runs: int) -> list[Latency]:
    """Where a runtime tells copies from computing: each by the device's own clock, of the inputs it had last."""
    return [
        _latency(f"{part}: {stage}", times[0], times)
        for part, runner in predictor.runners.items()
        if hasattr(runner, "device_latency")
        for stage, times in runner.device_latency(warmup, runs).items()
    ]


def _timed(stage: str, call: Callable[[], object], warmup: int, runs: int) -> Latency:
    first = _milliseconds(call)
    for _ in range(warmup):
        call()
    return _latency(stage, first, [_milliseconds(call) for _ in range(runs)])


def _latency(stage: str, first: float, times: list[float]) -> Latency:
    p50, p90, p99 = (float(np.percentile(times, q)) for q in (50, 90, 99))
    spread = statistics.stdev(times) if len(times) > 1 else 0.0
    return Latency(stage, len(times), first, statistics.mean(times), min(times), p50, p90, p99, spread)


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)
