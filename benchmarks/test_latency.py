"""pytest-benchmark figures of a bundle's parts, for `--benchmark-json` and `--benchmark-compare-fail` over time.

Not collected by the default run; `python -m pytest benchmarks`. Absolute times: for a comparison with the reference
scripts use ``latency_vs_reference.py``, which survives a busy machine. ``EDGESAM_BUNDLE`` names a folder to measure
instead of building one.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import edgesam_deploy as ed
from benchmarks.interleaved import Candidate
from benchmarks.latency_vs_reference import POINTS, slot_count
from benchmarks.reference_export import PARTS, Part, example_inputs

ROUNDS: dict[Part, int] = {"encoder": 15, "decoder": 60}


@pytest.fixture(scope="module")
def model() -> ed.Sam:
    return ed.load("edge_sam", seed=0)


@pytest.fixture(scope="module")
def bundle(model: ed.Sam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("EDGESAM_BUNDLE")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("bench") / "bundle"
    ed.build(model, target="onnx", out=folder, points=POINTS)
    return folder


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("part", PARTS)
def test_latency(benchmark: BenchmarkFixture, model: ed.Sam, bundle: Path, part: Part, threads: int) -> None:
    file = Candidate(part, bundle / f"{part}.onnx")
    points = slot_count(file) if part == "decoder" else POINTS
    inputs = {name: value.numpy() for name, value in example_inputs(model, part, points).items()}
    session = file.session(threads)
    benchmark.pedantic(session.run, args=(None, inputs), rounds=ROUNDS[part], warmup_rounds=3)  # type: ignore[no-untyped-call]
