"""Growth: what is compared with what, and what the tables say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import growth
from benchmarks.interleaved import AGAIN, Comparison, Machine, Ratio, Row
from benchmarks.latency_vs_reference import OURS, REFERENCE
from benchmarks.prompts_vs_reference import Encoded


def comparison(subject: str, rows: dict[str, tuple[float, float]]) -> Comparison:
    made = [Row(name, ms, 2 * ms, Ratio(r, r, r), Ratio(r, r, r)) for name, (ms, r) in rows.items()]
    return Comparison(subject, 2, 15, 1, tuple(made), 0.1, 0.2)


def pair(ours_ms: float, ratio: float, again: float = 1.0) -> Comparison:
    return comparison("part", {REFERENCE: (ours_ms / ratio, 1.0), AGAIN: (1.0, again), OURS: (ours_ms, ratio)})


def test_as_many_prompts_as_asked_for_in_one_call() -> None:
    calls: list[int] = []

    def predict_slots(coords: Any, labels: Any) -> Any:
        calls.append(len(coords))
        return np.zeros((len(coords), 4, 2, 2), np.float32), np.ones((len(coords), 4), np.float32)

    ours = SimpleNamespace(
        image_size=64, mask_threshold=0.0, original_size=(48, 64), input_size=(48, 64), predict_slots=predict_slots
    )
    found = growth.by_prompts(Encoded(ours), [1, 3], rounds=2, threads=1)
    assert [row.name for row in found.rows] == ["1 prompt(s)", AGAIN, "3 prompt(s)"]
    assert sorted(calls) == [1] * 6 + [3] * 3, "a warm-up call and two rounds of each"


def test_tables() -> None:
    rows = {"1 prompt(s)": (20.0, 1.0), AGAIN: (20.0, 1.0), "4 prompt(s)": (60.0, 3.0)}
    small = growth.Step(
        "512 pixels", {"encoder": 5.0, "decoder": 0.5}, {"encoder": pair(50, 0.9), "decoder": pair(8, 0.7)}
    )
    large = growth.Step(
        "1024 pixels",
        {"encoder": 20.0, "decoder": 2.0},
        {"encoder": pair(200, 0.8), "decoder": pair(40, 0.7, again=1.2)},
    )
    machine = Machine("a processor", 2, "2026-01-01", "Linux x86_64")
    text = growth.report(machine, comparison("prompts", rows), [small, large], [small], "seed 0")
    assert "| 4 prompt(s) | 60.0 | 15.0 | 0.750 (0.750-0.750) |" in text
    assert "| 1024 pixels | encoder | 20.00 | 250.0 | 200.0 | 0.800 (0.800-0.800) | 1.000 | 4.00 | 4.00 |" in text
    assert (
        "| 1024 pixels | decoder | 2.00 | 57.1 | 40.0 | 0.700 (0.700-0.700) | 1.200, no verdict | 5.00 | 4.00 |" in text
    )
    assert text.index("## Frame") < text.index("## Model")
    assert "##" not in growth.report(machine, None, [], [], "seed 0")


@pytest.mark.slow
def test_the_whole_benchmark_at_a_small_size(tmp_path: Path) -> None:
    options = ["--sizes", "64", "128", "--models", "edge_sam_m2", "--image-size", "128", "--prompts", "1", "3"]
    assert growth.main([*options, "--rounds", "1", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "growth.md").read_text()
    assert text.count("| encoder |") == 3
    assert "3 prompt(s)" in text
    assert (tmp_path / "growth.json").exists()
