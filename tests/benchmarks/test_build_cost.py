"""What a build costs: how a program is measured, and what is said of two sides."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import build_cost
from benchmarks.build_cost import EXPORTER, OURS, REFERENCE, BuildFailed, Cost, cost, ratio, report
from benchmarks.interleaved import Machine

HUNGRY = "a = bytearray(150_000_000); a[::4096] = b'x' * len(a[::4096]); sum(range(20_000_000))"


def test_a_program_is_measured_by_itself() -> None:
    small, large = (cost([sys.executable, "-c", code]) for code in ("pass", HUNGRY))
    assert large.peak_mb > small.peak_mb + 100
    assert large.cpu > small.cpu
    assert large.wall > 0


def test_a_build_that_fails_is_no_figure() -> None:
    with pytest.raises(BuildFailed, match=r"ended with 3: no such model"):
        cost([sys.executable, "-c", "import sys; print('no such model', file=sys.stderr); sys.exit(3)"])


@pytest.mark.parametrize(("ours", "verdict"), [(140.0, "reached"), (160.0, "missed")])
def test_the_report(ours: float, verdict: str) -> None:
    found = {REFERENCE: [Cost(10, 100, 900)] * 3, OURS: [Cost(12, 900, 1000), *[Cost(12, ours, 1000)] * 2]}
    assert ratio(found, "cpu") == ours / 100, "one disturbed round does not count"
    stages = {"stages": [{"stage": "passes", "seconds": 20.0}, {"stage": "fp16 lint", "seconds": 0.0}],
              "steps": [{"proof_seconds": 2.0}, {"proof_seconds": 0.5}]}  # fmt: skip
    text = report(Machine("a processor", 2, "2026-01-01", "Linux x86_64"), 1024, found, stages)
    assert f"at most 1.5 wanted: **{verdict}**" in text
    assert f"| {OURS} | 12.0 | {ours:.1f} | 1000.0 |" in text
    assert "exporter" not in text
    with_exporter = {**found, EXPORTER: [Cost(5, 220, 800)] * 3}
    text = report(Machine("a processor", 2, "2026-01-01", "Linux x86_64"), 1024, with_exporter, stages)
    assert "without a pass, proof or comparison, takes 2.20." in text
    assert "by stage: passes 20.0; of the passes 2.5 are proofs" in text


@pytest.mark.slow
def test_both_sides_at_a_small_size(tmp_path: Path) -> None:
    assert build_cost.main(["--image-size", "64", "--rounds", "1", "--out", str(tmp_path)]) == 0
    assert "at 64 pixels" in (tmp_path / "build_cost.md").read_text()
    assert (tmp_path / "build_cost.json").exists()
